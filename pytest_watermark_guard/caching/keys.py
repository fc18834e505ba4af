"""Keys of results: digests of weights, data and files.

A key tells the cases apart that can be told cheaply: other weights, another architecture, other
settings, other images. It does not read code. What code does with the same weights is checked on
numbers before anything cached is used, see `probing.first_answers`.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.state import unwrapped
from pytest_watermark_guard.models.tensor_bytes import NoValuesError, tensor_bytes

_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)


class NoKeyError(Exception):
    """Something that a result depends on cannot be told apart from its like; says what."""


def digest(*values: object) -> str:
    """Return a digest of values (hexadecimal SHA-256), the same in every process.

    Takes plain data, paths, enums, arrays, tensors, modules and dataclasses, nested in any way. Of
    functions and classes the name is taken, of other objects the class and the attributes. Raises
    `NoKeyError` if a tensor has no values, or someone's object cannot be read.
    """
    total = hashlib.sha256()
    try:
        for part in _value(values, set()):
            # With its length, so that parts never read alike when they are put together.
            total.update(struct.pack("<Q", len(part)))
            total.update(part)
    except (NoKeyError, NoValuesError) as error:
        raise NoKeyError(str(error)) from None
    except Exception as error:  # whatever the properties of someone's objects raise
        raise NoKeyError(f"{type(error).__name__}: {error}") from error
    return total.hexdigest()


Part = bytes | memoryview
Inside = set[int]
"""Identities of the containers and objects that a value is in, so that circles end."""


def _value(value: Any, inside: Inside) -> Iterator[Part]:
    if isinstance(value, nn.Module):
        value = unwrapped(value)
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if value is None or isinstance(value, (int, *_NAMED)):
        yield str(value).encode()
    elif isinstance(value, float):
        yield struct.pack("<d", value)
    elif isinstance(value, complex):
        yield struct.pack("<dd", value.real, value.imag)
    elif isinstance(value, str | PurePath):
        # Names of files that are not UTF-8 hold lone surrogates.
        yield str(value).encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value)
    elif isinstance(value, enum.Enum):
        yield value.name.encode()
    elif isinstance(value, Tensor):
        yield from tensor_bytes(value)
    elif isinstance(value, np.ndarray | np.generic):
        yield from _array(np.asarray(value), inside)
    elif id(value) in inside:
        yield b"a circle"
    else:
        yield from _compound(value, inside | {id(value)})


def _compound(value: Any, inside: Inside) -> Iterator[Part]:
    if isinstance(value, nn.Module):
        yield from _module(value, inside)
    elif isinstance(value, Mapping):
        yield from _items(value, inside)
    elif isinstance(value, tuple | list):
        yield str(len(value)).encode()
        for item in value:
            yield from _value(item, inside)
    elif isinstance(value, set | frozenset):
        yield from sorted(digest(item).encode() for item in value)
    elif isinstance(value, functools.partial):
        yield from _value((value.func, value.args, value.keywords), inside)
    elif hasattr(value, "__qualname__"):  # functions, methods and classes
        yield f"{getattr(value, '__module__', None)}.{value.__qualname__}".encode()
    elif is_dataclass(value):
        yield from _items({f.name: getattr(value, f.name) for f in fields(value)}, inside)
    else:
        yield from _items(getattr(value, "__dict__", {}), inside)


def _items(values: Mapping[Any, Any], inside: Inside) -> Iterator[Part]:
    yield str(len(values)).encode()
    for name, value in values.items():
        yield from _value(name, inside)
        yield from _value(value, inside)


def _array(array: npt.NDArray[Any], inside: Inside) -> Iterator[Part]:
    yield f"{array.dtype} {array.shape}".encode()
    if array.dtype.hasobject:
        yield from _value(array.tolist(), inside)
    else:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _module(module: nn.Module, inside: Inside) -> Iterator[Part]:
    """Give a model's tensors, its tree of classes and the plain attributes of its modules."""
    for name, part in module.named_modules(remove_duplicate=False):
        kind = getattr(part, "original_name", type(part).__qualname__)  # of TorchScript
        yield f"{name}: {type(part).__module__}.{kind}".encode()
        for attribute, value in sorted(vars(part).items()):
            if not attribute.startswith("_") and attribute != "training":
                yield attribute.encode()
                yield from _attribute(value, inside)
    for tensors in (module.named_parameters, module.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            yield name.encode()
            yield from _value(tensor, inside)
    # Packed weights of quantised modules are neither parameters nor buffers.
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            yield name.encode()
            yield from _attribute(value, inside)


def _attribute(value: Any, inside: Inside) -> Iterator[Part]:
    """Give an attribute that is plain data, else its class: it may lead to all of a program."""
    plain = bool | int | float | complex | str | bytes | Tensor | np.ndarray | np.generic
    if value is None or isinstance(value, (plain, enum.Enum, *_NAMED)):
        yield from _value(value, inside)
    elif isinstance(value, tuple | list) and id(value) not in inside:
        for item in value:
            yield from _attribute(item, inside | {id(value)})
    elif isinstance(value, dict) and id(value) not in inside:
        for key, item in value.items():
            yield str(key).encode()
            yield from _attribute(item, inside | {id(value)})
    else:
        named = value if hasattr(value, "__qualname__") else type(value)
        yield f"{named.__module__}.{named.__qualname__}".encode()
