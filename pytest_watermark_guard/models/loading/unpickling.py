"""Files of ``torch.save``, read so that none of the classes and functions they name is run."""

from __future__ import annotations

import contextlib
import os
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from pytest_watermark_guard.errors import ModelSpecError

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Of the standard library, what describes data; all else there could have been meant to do harm.
_PLAIN_MODULES = frozenset([
    "_codecs", "argparse", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "pathlib", "types", "typing", "uuid",
])  # fmt: skip
_PLAIN_BUILTINS = frozenset([
    "bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range",
    "set", "slice", "str", "tuple",
])  # fmt: skip
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # of Python 2
_LEGACY_PICKLES = 4  # of torch.save before 1.6: magic number, protocol, system, content
_MOST_PACKED, _MOST_UNPACKED = 100, 2**26  # times, and bytes that are always allowed
_SHOWN = 5

Name = tuple[str, str]
"""Of a class or function: its module, and its own."""


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Make every ``torch.load`` in the body, also inside libraries, refuse pickled code."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type when it has none.

    Of an error of torch's restricted unpickler, whose text advises to trust the file, a sentence
    of our own.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it holds pickled Python objects, which could run code"
    lines = _ESCAPES.sub("", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Inert:
    """Stands where a pickled object of another class would be, and does nothing."""

    def __new__(cls, *_args: Any, **_options: Any) -> Any:
        """Take what the object would be made of, and leave it."""
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Take the object's state, and leave it."""

    @classmethod
    def qualified_name(cls) -> str:
        """Return the name of the class that it stands for."""
        return f"{cls.__module__}.{cls.__qualname__}"


def load_pickled(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Load what ``torch.save`` wrote, on the CPU, with `Inert` for all that is not plain data.

    Returns
    -------
    content : Any
    replaced : tuple of str
        Qualified names of the classes whose objects were replaced.

    Raises
    ------
    ModelSpecError
        If the file is damaged, of another format, or names functions that could do harm.
    """
    check_unpacked_size(path)
    try:
        return _load(path), ()
    except pickle.UnpicklingError:
        names = _named_in(path)
    except Exception as error:  # zip, tar and torch each raise their own
        raise _unreadable(path, error) from error
    harmful = [name for name in names if not _describes_data(*name)]
    if names and not harmful and hasattr(torch.serialization, "safe_globals"):
        for stand_in in (_inert, _as_dict):
            used: set[str] = set()
            with contextlib.suppress(Exception):  # said below, for a damaged file as for others
                # Objects of our own under their names: nothing that the file names is imported.
                safe = [stand_in(*name, used) for name in names]
                with torch.serialization.safe_globals(safe):
                    return _load(path), tuple(sorted(used))
    shown = [".".join(name) for name in harmful or names if not name[0].startswith("torch")]
    which = f" ({listed(shown)})" if shown else ""
    raise ModelSpecError(
        f"{path} is damaged or holds more than tensors and plain data: pickled Python objects"
        f"{which} are not loaded, they could run code. Load it yourself where you trust it, and "
        f"save model.state_dict() alone, best as safetensors{_arrays_hint(path)}"
    )


def _arrays_hint(path: Path) -> str:
    if path.suffix != ".pkl":
        return ""
    return "; of NumPy arrays, as Detectron's .pkl holds them, make tensors first: torch.as_tensor"


def _load(path: Path) -> Any:
    with weights_only(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another protocol, in words for torch's developers
        return torch.load(path, map_location="cpu", weights_only=True)


def _unreadable(path: Path, error: Exception) -> ModelSpecError:
    if "TorchScript" in str(error):
        return ModelSpecError(
            f"{path} is a TorchScript archive, not weights: pass torch.jit.load({str(path)!r}) as "
            "the model, or save its state_dict()"
        )
    return ModelSpecError(
        f"{path} is damaged, or no file of torch.save ({first_line(error)}): save "
        "model.state_dict() alone, best as safetensors"
    )


def _named_in(path: Path) -> list[Name]:
    """Return the classes and functions that a file names, sorted; nothing if it is damaged."""
    names: set[Name] = set()
    try:
        with path.open("rb") as file:
            for pickled in _pickles(file):
                for opcode, argument, _ in pickletools.genops(pickled):
                    if opcode.name == "GLOBAL":
                        module, _, name = str(argument).partition(" ")
                        names.add((_OLD_MODULES.get(module, module), name))
    except Exception:  # zip, zlib and pickletools each raise their own
        return []
    return sorted(names)


def check_unpacked_size(path: Path) -> None:
    """Raise `ModelSpecError` for an archive of a few bytes that would fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception:  # no such archive, or a damaged one: whoever loads it says so
        return
    if unpacked > max(_MOST_UNPACKED, _MOST_PACKED * path.stat().st_size):
        raise ModelSpecError(
            f"{path} was refused: it would be unpacked to {unpacked:,} bytes, more than "
            f"{_MOST_PACKED} times its size, as weights never are"
        )


def _pickles(file: IO[bytes]) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            yield file
        return
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith("data.pkl"):
                with archive.open(name) as member:
                    yield member


def _describes_data(module: str, name: str) -> bool:
    package = module.partition(".")[0]
    if package == "builtins":
        return name in _PLAIN_BUILTINS
    return package in _PLAIN_MODULES or package not in sys.stdlib_module_names


def _inert(module: str, name: str, used: set[str]) -> Any:
    """Return a class whose objects do nothing; it adds its name to `used` when one is made."""

    def make(cls: type[Inert], *_args: Any, **_options: Any) -> Any:
        used.add(cls.qualified_name())
        return object.__new__(cls)

    # torch knows it by these two attributes.
    return type(name, (Inert,), {"__module__": module, "__qualname__": name, "__new__": make})


def _as_dict(module: str, name: str, used: set[str]) -> Any:
    """Return a stand-in for a class that is filled as a dict; those of NumPy are not."""
    if module.partition(".")[0] == "numpy":
        return _inert(module, name, used)

    def make(_cls: type, *_args: Any, **_options: Any) -> Any:
        used.add(f"{module}.{name}")
        return OrderedDict()

    return type(name, (), {"__module__": module, "__qualname__": name, "__new__": make})


def listed(items: list[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
