"""Looking into files, code and objects of Python, for what makes them behave as they do."""

from __future__ import annotations

import collections
import hashlib
import struct
import sys
import types
from collections.abc import Iterator
from typing import Any

from pytest_watermark_guard.caching.releases import release_of

CONTAINERS = (tuple, list, dict, collections.OrderedDict, set, frozenset)
SCALARS = (bool, int, float, complex, str, bytes)
HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: neither built in nor static in an extension
_POINTER = struct.calcsize("P")


def file_digest(path: str) -> bytes:
    """Digest a file's content."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - speed
        return hashlib.sha256(file.read()).digest()


def source_digest(module_name: str) -> bytes:
    """Digest the file that a module came from; empty for notebooks and the like."""
    file = getattr(sys.modules.get(module_name), "__file__", None)
    try:
        return file_digest(file) if file else b""
    except OSError:
        return b""


def nested_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Give a code object and all those of the functions written inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from nested_codes(constant)


def function_release(function: types.FunctionType) -> str | None:
    """Return what pins the source of a function, by its globals: wrappers take another's name."""
    name = str(function.__globals__.get("__name__", ""))
    module = sys.modules.get(name)
    return release_of(name) if module and vars(module) is function.__globals__ else None


def is_found_by_name(cls: type) -> bool:
    """Tell classes of the library's source from those that it made at run time."""
    if not cls.__flags__ & HEAP_TYPE:
        return True
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def foreign_functions(
    namespace: type | types.ModuleType, home: str
) -> list[tuple[str, types.FunctionType]]:
    """Return the functions in a class or module whose globals are another library's."""
    root = home.partition(".")[0]
    return [
        (name, function)
        for name, value in sorted(vars(namespace).items(), key=lambda item: item[0])
        if isinstance(function := inner_function(value), types.FunctionType)
        and str(function.__globals__.get("__name__")).partition(".")[0] != root
    ]


def inner_function(value: Any) -> Any:
    """Return the function inside a method's or property's wrapper; anything else as it is."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    return value.fget if isinstance(value, property) else value


def home_of(hook: Any) -> str:
    """Return the name of the module that a hook's or an object's code is in."""
    if isinstance(hook, types.FunctionType):
        return str(hook.__globals__.get("__name__", ""))
    return str(type(hook).__module__)


def state_of(value: Any) -> dict[str, Any]:
    """Return an object's attributes, those in slots too."""
    state = dict(getattr(value, "__dict__", {}))
    for base in type(value).__mro__:
        for name, slot in vars(base).items():
            # __vectorcalloffset__ and its like read as addresses.
            if isinstance(slot, types.MemberDescriptorType) and not name.endswith("offset__"):
                try:
                    state.setdefault(name, slot.__get__(value))
                except AttributeError:  # not set
                    continue
    return state


def solid_base(cls: type) -> type:
    """Return the compiled class that a class adds nothing but attributes to."""
    while cls.__base__ is not None and not has_hidden_memory(cls, cls.__base__):
        cls = cls.__base__
    return cls


def has_hidden_memory(cls: type, base: type) -> bool:
    """Tell whether instances are larger than the attributes that Python gives them."""
    if cls in CONTAINERS or cls in SCALARS or cls.__itemsize__ != base.__itemsize__:
        return True
    slots = sum(isinstance(value, types.MemberDescriptorType) for value in vars(cls).values())
    slots = slots if "__slots__" in vars(cls) else 0
    added = slots + ("__dict__" in vars(cls)) + ("__weakref__" in vars(cls))
    return cls.__basicsize__ - base.__basicsize__ > added * _POINTER
