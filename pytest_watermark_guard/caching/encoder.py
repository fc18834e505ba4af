"""Values of all kinds as bytes that no other value has."""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import logging
import random
import struct
import sys
import types
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from pytest_watermark_guard.caching.inspection import (
    CONTAINERS,
    HEAP_TYPE,
    SCALARS,
    foreign_functions,
    function_release,
    home_of,
    is_found_by_name,
    nested_codes,
    solid_base,
    source_digest,
    state_of,
)
from pytest_watermark_guard.caching.releases import release_of
from pytest_watermark_guard.models.state import unwrapped

# What a module holds beside the attributes of its code. A probe evaluates, in eager mode, and the
# hooks left out here see no forward pass.
_NOT_STATE = frozenset((
    "training", "_non_persistent_buffers_set", "_is_full_backward_hook", "_compiled_call_impl",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_is_torch_compile",
    # What is known of a mask; what it does is done by its hook, with buffers.
    "_watermark_guard_applied", "_watermark_guard_children",
))  # fmt: skip
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_MASKS = "pytest_watermark_guard.mitigation."
_GLOBAL_HOOKS = (
    "_global_forward_pre_hooks",
    "_global_forward_hooks",
    "_global_backward_pre_hooks",
    "_global_backward_hooks",
)
# Of a traced module, told by its graph, or for tools that rewrite graphs.
_NOT_GRAPH_STATE = frozenset((
    "_graph", "_lineno_map", "_prologue_start", "_tracer_cls", "_tracer_extras", "meta",
    "shape_env", "range_constraints", "validate_inputs", "module_call_graph", "train", "eval",
    "_replace_hooks", "_create_node_hooks", "_erase_node_hooks", "_deepcopy_hooks",
))  # fmt: skip
# Of a class, without influence on what its instances compute.
_NOT_BEHAVIOUR = frozenset((
    "__dict__", "__weakref__", "__module__", "__qualname__", "__doc__", "__annotations__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__abstractmethods__",
    "_abc_impl", "__orig_bases__", "__parameters__", "__type_params__", "__static_attributes__",
    "__firstlineno__", "__dataclass_fields__", "__dataclass_params__",
))  # fmt: skip
_RANDOM = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_DESCRIPTORS = (
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
# Namespaces of operators whose code comes with torch or torchvision.
_OPERATORS = frozenset(("aten", "prim", "prims", "quantized", "torchvision", "higher_order"))

_BIG = 2**20  # bytes; smaller tensors are hashed sooner than a thread wakes up
_MOST_VALUES = 500_000


class Unfingerprintable(Exception):  # noqa: N818 - an answer rather than an error
    """A value whose influence on a result cannot be told; says where it is and why."""


def framed(tag: str, payload: bytes) -> bytes:
    """Say what comes and how long it is, so that different values never read alike."""
    return b"%s %d:" % (tag.encode(), len(payload)) + payload


class Encoder:
    """Writes a value down as bytes that no other value has."""

    def __init__(self, pool: ThreadPoolExecutor, name: str) -> None:
        self._pool = pool
        # Texts, and dict keys and indices in tuples, which are formatted when they are asked for.
        self._path: list[str | tuple[object]] = [name]
        self._parts: list[bytes | Future[bytes]] = []
        # Positions of what was met before, by identity; the object is kept, or another one
        # could get its identity.
        self._met: dict[object, tuple[int, object]] = {}
        self._count = 0

    def digest(self) -> bytes:
        """Return the digest of everything written down."""
        total = hashlib.sha256()
        for part in self._parts:
            total.update(part if isinstance(part, bytes) else part.result())
        return total.digest()

    def encode(self, value: Any) -> None:
        """Write down a value; raises `Unfingerprintable` where that cannot be done."""
        self._count += 1
        if self._count > _MOST_VALUES:
            raise self.refusal("there is too much of it")
        if isinstance(value, nn.Module):
            value = unwrapped(value)
        kind = type(value)
        if value is None or value is ... or value is NotImplemented:
            self._write(str(value))
        elif kind in SCALARS:
            self._write(kind.__name__, _scalar_bytes(value))
        elif kind in (tuple, frozenset):  # shared or not, as the compiler pleases
            self._container(kind.__name__, value)
        elif isinstance(value, _NAMED):
            self._write(kind.__name__, str(value).encode())
        elif not self._was_met(id(value), value):
            self._encode_new(value, kind)

    def _encode_new(self, value: Any, kind: type) -> None:
        if isinstance(value, (*_RANDOM, Iterator)):
            raise self.refusal(f"a {kind.__name__} gives other values each time")
        if kind in CONTAINERS:
            self._container(kind.__name__, value)
            return
        for classes, encode in _ENCODERS:
            if isinstance(value, classes):
                encode(self, value)
                return
        self._object(value)

    def refusal(self, why: str) -> Unfingerprintable:
        """Return the exception that says where the writing stopped, and why."""
        return Unfingerprintable(f"{self._where()}: {why}")

    def _where(self) -> str:
        return "".join(
            label if isinstance(label, str) else f"[{label[0]!r}]" for label in self._path
        )

    def _write(self, tag: str, payload: bytes = b"") -> None:
        self._parts.append(framed(tag, payload))

    def _was_met(self, identity: object, value: object) -> bool:
        if identity in self._met:
            self._write("again", b"%d" % self._met[identity][0])
            return True
        self._met[identity] = (len(self._met), value)
        return False

    def _child(self, label: str | tuple[object], value: Any) -> None:
        self._path.append(label)
        self.encode(value)
        self._path.pop()

    def _children(self, tag: str, named: Iterable[tuple[str, Any]]) -> None:
        """Write attributes, in the order given."""
        pairs = list(named)
        self._write(tag, b"%d" % len(pairs))
        for name, value in pairs:
            self._write("name", _scalar_bytes(name))
            self._child(f".{name}", value)

    # Containers

    def _items(self, tag: str, values: Sequence[Any]) -> None:
        self._write(tag, b"%d" % len(values))
        for index, value in enumerate(values):
            self._child((index,), value)

    def _mapping(self, tag: str, values: Collection[tuple[Any, Any]]) -> None:
        # In their order, which code may rely on.
        self._write(tag, b"%d" % len(values))
        for key, value in values:
            self._child((key,), key)
            self._child((key,), value)

    def _unordered(self, tag: str, values: Iterable[Any]) -> None:
        self._write(tag, b"".join(sorted(map(self._own_digest, values))))

    def _own_digest(self, value: Any) -> bytes:
        encoder = Encoder(self._pool, f"{self._where()}{{...}}")
        encoder._count = self._count
        encoder.encode(value)
        self._count = encoder._count
        return encoder.digest()

    def _container(self, tag: str, value: Any) -> None:
        # The base's own view: a subclass may iterate otherwise.
        if isinstance(value, dict):
            self._mapping(tag, dict.items(value))
        elif isinstance(value, set | frozenset):
            self._unordered(tag, value)
        else:
            base: Any = tuple if isinstance(value, tuple) else list
            self._items(tag, [*base.__iter__(value)])

    def _proxy(self, value: types.MappingProxyType[Any, Any]) -> None:
        self._mapping("mappingproxy", value.items())

    # Numbers in bulk

    def _tensor(self, value: Tensor) -> None:
        strided = value.layout == torch.strided and not value.is_quantized
        # Its class may be Parameter; others may hold anything.
        if type(value) not in (Tensor, nn.Parameter) or not strided or value.is_nested:
            raise self.refusal(f"a {type(value).__name__} ({value.layout}) is no plain tensor")
        if value.is_meta:
            raise self.refusal("a tensor on the meta device has no values")
        self._write("tensor", f"{value.dtype} {[*value.shape]}".encode())
        self._hash(_tensor_memory(value))
        self._children("attributes", sorted(vars(value).items()))

    def _array(self, value: npt.NDArray[Any]) -> None:
        if type(value) not in (np.ndarray, np.memmap) or value.dtype.kind in "OV":
            raise self.refusal(f"a {type(value).__name__} of {value.dtype} is no plain array")
        self._write("array", f"{value.dtype.str} {[*value.shape]}".encode())
        self._hash(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)

    def _number(self, value: np.generic) -> None:
        self._array(np.asarray(value))

    def _hash(self, memory: memoryview) -> None:
        if memory.nbytes >= _BIG:
            self._parts.append(self._pool.submit(_memory_digest, memory))
        else:
            self._parts.append(_memory_digest(memory))

    # Code

    def _function(self, function: types.FunctionType) -> None:
        self._write("function")
        self._code(function.__code__)
        self._child(".__defaults__", function.__defaults__)
        self._child(".__kwdefaults__", function.__kwdefaults__)
        self._children("attributes", sorted(vars(function).items()))
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._children("closure", cells)
        if release := function_release(function):
            # Its globals belong to the release.
            self._write("release", f"{function.__globals__['__name__']} {release}".encode())
        else:
            self._globals(function)

    def _cell(self, cell: types.CellType) -> None:
        try:
            content = cell.cell_contents
        except ValueError:
            self._write("empty")
        else:
            self.encode(content)

    def _code(self, code: types.CodeType) -> None:
        self._write("code", code.co_code)
        self._write("exceptions", getattr(code, "co_exceptiontable", b""))
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        self.encode((counts, names))
        self._items("constants", code.co_consts)

    def _globals(self, function: types.FunctionType) -> None:
        codes = list(nested_codes(function.__code__))
        for code in codes:
            self._check_instructions(code)
        # Names of attributes are among them: what they find too many is taken in for nothing.
        names = sorted({name for code in codes for name in code.co_names})
        known = function.__globals__
        self._named_values([(name, known[name]) for name in names if name in known], names)

    def _named_values(self, found: list[tuple[str, Any]], names: list[str]) -> None:
        self._write("globals", b"%d" % len(found))
        for name, value in found:
            self._write("name", name.encode())
            if isinstance(value, types.ModuleType) and not release_of(value.__name__):
                self._path.append(f".{name}")
                self._own_module(value, names)
                self._path.pop()
            else:
                self._child(f".{name}", value)

    def _check_instructions(self, code: types.CodeType) -> None:
        before = previous = ""
        for instruction in dis.get_instructions(code):
            if instruction.opname == "EXTENDED_ARG":
                continue
            name = str(instruction.argval)
            if instruction.opname == "IMPORT_NAME":
                release = release_of(name) if before == "0" else None  # not relative
                if not release:
                    raise self.refusal(f"imports {name or 'a module'} when it is called")
                self._write("import", f"{name} {release}".encode())
            if (before, previous) == ("torch", "ops"):
                self._check_operators(name)
            before, previous = previous, name

    def _check_operators(self, namespace: str) -> None:
        if namespace not in _OPERATORS:
            raise self.refusal(f"calls an operator of torch.ops.{namespace}, whose code is hidden")

    def _module(self, module: types.ModuleType) -> None:
        release = release_of(module.__name__)
        if module.__name__.startswith("torch.ops"):
            self._check_operators(module.__name__[len("torch.ops.") :])
        if not release:
            raise self.refusal(f"the module {module.__name__} as a value has no version")
        self._write("module", f"{module.__name__} {release}".encode())

    def _own_module(self, module: types.ModuleType, names: list[str]) -> None:
        """Write down the user's own module, as code sees it that uses these names."""
        if self._was_met((id(module), *names), module):
            return
        self._write("source", source_digest(module.__name__))
        values = [(name, vars(module)[name]) for name in names if name in vars(module)]
        self._named_values(values, names)

    def _builtin(self, function: types.BuiltinFunctionType) -> None:
        owner = function.__self__
        self._write("builtin", f"{function.__module__} {function.__qualname__}".encode())
        if owner is None:
            home = function.__module__ or ""
            if not release_of(home):
                raise self.refusal(f"{function.__qualname__} is compiled code without a version")
            self._write("release", str(release_of(home)).encode())
        else:
            self._child(".__self__", owner)

    def _descriptor(self, value: Any) -> None:
        self._write("descriptor", value.__name__.encode())
        self._child(".__objclass__", value.__objclass__)

    def _wrapper(self, value: Any) -> None:
        """Write down methods, partial functions, properties and the like."""
        self._write("wrapper")
        self._child(".__class__", type(value))
        # Older cached properties have a lock.
        state = {k: v for k, v in state_of(value).items() if k not in ("lock", "__doc__")}
        self._children("wrapped", sorted(state.items()))

    def _class(self, cls: type) -> None:
        self._write("class", f"{cls.__module__}.{cls.__qualname__}".encode())
        release = release_of(str(cls.__module__))
        if release and is_found_by_name(cls):
            self._write("release", release.encode())
            for base in cls.__mro__:
                self._replaced(base, base.__module__)
            return
        if not cls.__flags__ & HEAP_TYPE:
            raise self.refusal(f"{cls.__qualname__} is compiled code without a version")
        self._write("source", source_digest(cls.__module__))
        self._child(".__class__", type(cls))
        self._items("bases", cls.__bases__)
        own = ((name, value) for name, value in vars(cls).items() if name not in _NOT_BEHAVIOUR)
        self._children("own", sorted(own, key=lambda item: item[0]))

    def _replaced(self, namespace: type | types.ModuleType, home: str) -> None:
        """Write down the functions of a library's class or module that come from elsewhere."""
        found = foreign_functions(namespace, home)
        self._write("replaced", b"%d" % len(found))
        for name, function in found:
            self._write("name", name.encode())
            if function_release(function):  # a decorator of another library
                self._code(function.__code__)
            else:
                self._child(f".{name}", function)

    # Objects

    def _enum(self, value: enum.Enum) -> None:
        self._write("enum", str(value.name).encode())
        self._child(".value", value.value)
        self._child(".__class__", type(value))

    def _file_path(self, value: PurePath) -> None:
        self._write("path", _scalar_bytes(str(value)))
        self._child(".__class__", type(value))

    def _logger(self, value: logging.Logger) -> None:
        self._write("logger")  # decides what is printed, nothing else

    def _weak_reference(self, value: weakref.ref[Any]) -> None:
        self._write("weakref")
        self._child("()", value())

    def _operator(self, value: Any) -> None:
        name = str(value)
        self._check_operators(name.partition(".")[0])
        self._write("operator", f"{name} {torch.__version__}".encode())

    def _object(self, value: Any) -> None:
        kind = type(value)
        solid = solid_base(kind)
        if solid not in (object, *SCALARS, *CONTAINERS):
            self._compiled_object(value)
            return
        self._write("object")
        self._child(".__class__", kind)
        if solid in SCALARS:
            self._write("content", _scalar_bytes(value))
        elif solid is not object:
            self._container(solid.__name__, value)
        self._children("state", sorted(state_of(value).items()))

    def _compiled_object(self, value: Any) -> None:
        """Write down what pickle would keep: classes with a version are trusted to tell it all."""
        kind = type(value)
        if not release_of(str(kind.__module__)):
            raise self.refusal(f"a {kind.__qualname__} has state that cannot be seen")
        try:
            reduce = copyreg.dispatch_table.get(kind)
            reduced = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception:
            raise self.refusal(f"a {kind.__qualname__} has state that cannot be seen") from None
        self._child(".__class__", kind)
        if isinstance(reduced, str):  # a global's name, as of NumPy's functions
            home = sys.modules[kind.__module__.partition(".")[0]]
            if getattr(home, reduced, None) is not value:
                raise self.refusal(f"the {kind.__qualname__} {reduced} cannot be found")
            self._write("global", reduced.encode())
            return
        how, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        self._write("reduced")
        for part in (how, arguments, state, list(items or ()), list(pairs or ())):
            self.encode(part)

    def _network(self, module: nn.Module) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise self.refusal("TorchScript has state that cannot be seen")
        if any(getattr(nn.modules.module, name) for name in _GLOBAL_HOOKS):
            raise self.refusal("a hook on all modules may change outputs")
        if not self._was_met("torch", torch):
            for library in (torch, nn.functional):  # which are patched now and then
                self._replaced(library, "torch")
        if home_of(module) == "torch.export._unlift" and type(module).__name__ == "GuardsFn":
            self._write("check")  # of the input's shape
            return
        state = {k: v for k, v in vars(module).items() if k not in _NOT_STATE}
        if isinstance(module, fx.GraphModule):
            state = {k: v for k, v in state.items() if k not in _NOT_GRAPH_STATE}
            self._graph(module)
        else:
            self._write("network")
            self._child(".__class__", type(module))
        for name in ("_parameters", "_buffers", "_modules"):
            self._children(name, state.pop(name, {}).items())
        for name in _HOOKS:
            self._hooks(name, list(state.pop(name, {}).values()))
        self._children("state", sorted(state.items()))

    def _graph(self, module: fx.GraphModule) -> None:
        code = module.graph.python_code("self")
        self._write("graph", code.src.encode())
        # Every instance has a class of its own, made from this one.
        self._child(".__class__", type(module).__base__)
        self._children("globals", sorted(code.globals.items()))
        for node in module.graph.nodes:
            if isinstance(node.target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
                self._check_operators(str(node.target).partition(".")[0])

    def _hooks(self, name: str, hooks: list[Any]) -> None:
        self._write(name, b"%d" % len(hooks))
        for hook in hooks:
            home = home_of(hook.func if isinstance(hook, functools.partial) else hook)
            if home.startswith(("torch.export.", "torch._export.")):
                self._write("check")  # of the input's shape
            elif home.startswith(("torch.nn.utils.", _MASKS)):  # spectral_norm, prune; masks
                self._child(f".{name}", hook)
            else:
                raise self.refusal("a hook may change outputs")


# The first that fits; all others are objects.
_ENCODERS: tuple[tuple[Any, Callable[[Encoder, Any], None]], ...] = (
    (enum.Enum, Encoder._enum),
    (PurePath, Encoder._file_path),
    (Tensor, Encoder._tensor),
    (np.ndarray, Encoder._array),
    (np.generic, Encoder._number),
    (nn.Module, Encoder._network),
    (type, Encoder._class),
    (types.CellType, Encoder._cell),
    (types.FunctionType, Encoder._function),
    (types.CodeType, Encoder._code),
    (types.ModuleType, Encoder._module),
    (types.BuiltinFunctionType, Encoder._builtin),
    (_DESCRIPTORS, Encoder._descriptor),
    (
        (
            types.MethodType,
            functools.partial,
            functools.cached_property,
            functools._lru_cache_wrapper,
            staticmethod,
            classmethod,
            property,
        ),
        Encoder._wrapper,
    ),
    (types.MappingProxyType, Encoder._proxy),
    (logging.Logger, Encoder._logger),
    (weakref.ref, Encoder._weak_reference),
    ((torch._ops.OpOverload, torch._ops.OpOverloadPacket), Encoder._operator),
)


def _scalar_bytes(value: Any) -> bytes:
    if isinstance(value, int):
        return b"%x" % value
    if isinstance(value, float):
        return struct.pack("<d", value)
    if isinstance(value, complex):
        return struct.pack("<dd", value.real, value.imag)
    # Lone surrogates are in file names that are not UTF-8.
    return str.encode(value, "utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)


def _tensor_memory(tensor: Tensor) -> memoryview:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    # As bytes, because NumPy has no bfloat16.
    memory: memoryview = plain.reshape(-1).view(torch.uint8).numpy().data
    return memory


def _memory_digest(memory: memoryview) -> bytes:
    return hashlib.sha256(memory).digest()
