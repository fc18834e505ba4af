from __future__ import annotations

import cmath
import copy
import dataclasses
import enum
import functools
import importlib
import io
import itertools
import logging
import math
import os
import random
import re
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import pytest_watermark_guard as wm
from pytest_watermark_guard.caching.fingerprint import (
    Unfingerprintable,
    fingerprint,
    fingerprint_files,
    fingerprint_model,
)

SCALE = 1.0


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Any
    right: Any


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left: Any) -> None:
        self.left = left


class Slotless:
    def __init__(self, **values: Any) -> None:
        self.__dict__ = values


class Named(dict):
    pass


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("offset", torch.zeros(3), persistent=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x)) * self.scale + self.offset


def model() -> Scaled:
    torch.manual_seed(3)
    return Scaled()


DIFFERENT = [
    None, ..., True, 1, 1.0, 1j, "1", b"1", Path("1"), Level.ONE, Colour.RED, Colour.BLUE,
    0.0, -0.0, float("nan"), (), [], {}, set(), frozenset(), "", b"", (None,), [None],
    ("a", "b"), ("ab",), ["a", "b"], [["a"], "b"], [["a", "b"]], ("a", ("b",)), {"a", "b"},
    {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": "b"}, {"ab": None}, Named(a=1), Named(a=2),
    np.float32(1), np.float64(1), np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32),
    np.zeros(4, np.float32), np.zeros(2, ">f4"), torch.zeros(2), torch.zeros(2, 1),
    torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16), torch.zeros(4),
    torch.zeros(0), torch.zeros(()), torch.float32, torch.float64, torch.device("cpu"), "cpu",
    torch.Size([2]), Pair(1, 2), Pair(2, 1), Slotted(1), Slotted(2), slice(1, 2), range(1, 2),
    int, float, Pair, len, max, torch.relu, torch.sigmoid, math, cmath, np.sqrt, np.exp,
    np.dtype("f4"), int | str,
    functools.partial(max, 1), functools.partial(max, 2), functools.partial(max, default=1),
    "".join, ",".join, str.lower, str.upper, Pair(1, 2).__eq__, Pair(1, 3).__eq__,
    types.MappingProxyType({}), nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.Identity(),
    lambda x: x, lambda x: -x, lambda x: x + 1, lambda x: x + 2, lambda x: x + 2.0,
    lambda x=1: x, lambda x=2: x, lambda *, x=1: x, lambda *, x=2: x, lambda x: x.real,
    lambda x: x.imag, lambda x: [x for _ in "a"], lambda x: [x for _ in "b"], lambda: SCALE,
    lambda: np.sin, lambda: np.cos, property(len), property(max), staticmethod(len),
]  # fmt: skip


def test_no_two_different_values_are_alike() -> None:
    digests = [fingerprint(value) for value in DIFFERENT]
    for (one, left), (other, right) in itertools.combinations(enumerate(digests), 2):
        assert left != right, (DIFFERENT[one], DIFFERENT[other])


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(PLAIN, PLAIN)
def test_plain_data_is_alike_where_it_reads_alike(left: Any, right: Any) -> None:
    assert (fingerprint(left) == fingerprint(right)) == (repr(left) == repr(right))
    assert fingerprint(left) == fingerprint(copy.deepcopy(left))


def test_a_lone_surrogate_is_text() -> None:
    assert fingerprint("\udcff") != fingerprint("\udcfe")


def test_the_order_of_a_set_does_not_matter_and_that_of_attributes_neither() -> None:
    # With these the slots of the hash table collide.
    assert fingerprint({0, 8, 16}) == fingerprint({16, 8, 0})
    assert fingerprint({("a", 1), ("b", 2)}) == fingerprint({("b", 2), ("a", 1)})
    one, other = Slotless(a=1, b=2), Slotless(b=2, a=1)
    assert fingerprint(one) == fingerprint(other)


def test_cycles_end() -> None:
    def knot(end: int) -> list[Any]:
        values: list[Any] = [end]
        values.append({"self": values})
        return values

    assert fingerprint(knot(1)) == fingerprint(knot(1)) != fingerprint(knot(2))


def test_what_is_nested_too_deeply_is_refused() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(Unfingerprintable, match="nested too deeply"):
        fingerprint(value)


def test_what_is_too_much_is_refused() -> None:
    with pytest.raises(Unfingerprintable, match="too much"):
        fingerprint(list(range(600_000)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_tensor_is_its_numbers_wherever_they_lie(dtype: torch.dtype) -> None:
    values = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype)
    spread = torch.zeros(2, 3, 8, dtype=dtype)[..., ::2].copy_(values)
    turned = values.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert fingerprint(values) == fingerprint(spread) == fingerprint(turned)
    changed = values.clone()
    changed[1, 2, 3] = 0
    assert fingerprint(values) != fingerprint(changed)


def test_a_large_tensor_is_hashed_in_its_place() -> None:
    large, small = torch.rand(2**19), torch.rand(2)
    assert fingerprint([large, small]) != fingerprint([small, large])
    changed = large.clone()
    changed[-1] += 1
    assert fingerprint(large) != fingerprint(changed)
    assert fingerprint(large) == fingerprint(large.clone())


def test_a_lazily_conjugated_tensor_is_its_values() -> None:
    tensor = torch.tensor([1 + 2j])
    assert fingerprint(tensor.conj()) == fingerprint(torch.tensor([1 - 2j])) != fingerprint(tensor)


def test_an_array_is_its_numbers_wherever_they_lie(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.save(tmp_path / "a.npy", values)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert fingerprint(values) == fingerprint(np.asfortranarray(values)) == fingerprint(mapped)


def _other(value: Any) -> Callable[[], Any]:
    return lambda: value


def test_a_closure_is_told_by_what_it_holds() -> None:
    assert fingerprint(_other(1)) == fingerprint(_other(1)) != fingerprint(_other(2))


def test_an_empty_cell_is_no_error() -> None:
    def outer() -> Callable[[], int]:
        def inner() -> int:
            return later

        if SCALE < 0:
            later = 1
        return inner

    assert fingerprint(outer()) == fingerprint(outer())


def test_a_function_is_told_by_its_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(x: float) -> float:
        return sum(y * SCALE for y in (x,))

    before = fingerprint(scaled)
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    assert fingerprint(scaled) != before


def test_a_function_may_call_itself() -> None:
    def countdown(n: int) -> int:
        return n and countdown(n - 1)

    assert fingerprint(countdown) == fingerprint(countdown)


def test_wrapping_hides_nothing() -> None:
    def wrapped_twice(body: Callable[..., Any], factor: int) -> Callable[..., Any]:
        @functools.wraps(torch.nn.functional.relu)  # takes its name and its module
        def inner(x: Any) -> Any:
            return body(x) * factor

        return functools.lru_cache(inner)

    digests = {
        fingerprint(wrapped_twice(body, factor))
        for body in (torch.relu, torch.tanh)
        for factor in (1, 2)
    }
    assert len(digests) == 4


def test_a_method_is_told_by_its_object() -> None:
    assert fingerprint(model().forward) == fingerprint(model().forward)
    assert fingerprint(model().forward) != fingerprint(Scaled(2.0).forward)
    assert fingerprint(model().forward) != fingerprint(model().extra_repr)


def test_loggers_do_not_matter() -> None:
    assert fingerprint(logging.getLogger("a")) == fingerprint(logging.getLogger("b"))


@pytest.mark.parametrize(
    "body", ["self.x", "self.x + 1", "self.y", "self.x + OFFSET", "helper(self.x)", "super().f()"]
)
def test_a_class_is_told_by_its_methods(body: str) -> None:
    def made(body: str, **names: Any) -> type:
        # Without a file: what counts is in memory.
        names |= {"__name__": "made_of_text"}
        exec(f"class Made:\n  x = 1\n  def f(self): return {body}", names)
        return names["Made"]

    assert fingerprint(made(body)) == fingerprint(made(body)) != fingerprint(made("self.z"))
    if "OFFSET" in body:
        assert fingerprint(made(body, OFFSET=1)) != fingerprint(made(body, OFFSET=2))
    if "helper" in body:
        assert fingerprint(made(body, helper=len)) != fingerprint(made(body, helper=abs))


def test_a_class_attribute_and_a_base_count() -> None:
    one, other = type("A", (Slotted,), {"size": 1}), type("A", (Slotted,), {"size": 2})
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(type("A", (Slotted,), {})) != fingerprint(type("A", (Pair,), {}))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Write the user's files, import them anew and build their model."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits come faster than a second
    folder = tmp_path / "users_models"
    folder.mkdir()

    def build(net: str, helpers: str = "") -> nn.Module:
        (folder / "__init__.py").write_text("")
        (folder / "net.py").write_text(net)
        (folder / "helpers.py").write_text(helpers)
        for name in [name for name in sys.modules if name.startswith("users_models")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        torch.manual_seed(0)
        return importlib.import_module("users_models.net").Net()

    return build


NET = """
import torch
from torch import nn
from users_models import helpers

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return helpers.activation(self.head(x))
"""
HELPERS = "LIMIT = 1\ndef activation(x): return x.clamp(max=LIMIT)\ndef unused(): return 1\n"


def test_a_model_is_told_by_its_source(package: Callable[..., nn.Module]) -> None:
    before = fingerprint_model(package(NET, HELPERS))
    assert fingerprint_model(package(NET, HELPERS)) == before
    changed = [
        (NET.replace("self.head(x))", "self.head(x)) * 2"), HELPERS),
        (NET + "# whatever may be found by a computed name\n", HELPERS),
        (NET, HELPERS.replace("max=", "min=")),
        (NET, HELPERS.replace("LIMIT = 1", "LIMIT = 2")),
        (NET.replace("nn.Linear(3, 2)", "nn.Linear(3, 4)"), HELPERS),
    ]  # fmt: skip
    digests = [fingerprint_model(package(*files)) for files in changed]
    assert len({before, *digests}) == 1 + len(changed)


def test_the_code_in_memory_counts_too(package: Callable[..., nn.Module]) -> None:
    net = package(NET, HELPERS)
    before = fingerprint_model(net)
    sys.modules["users_models.helpers"].LIMIT = 3  # type: ignore[attr-defined]
    assert fingerprint_model(net) != before


@pytest.mark.parametrize("statement", ["from users_models import helpers", "from . import helpers"])
def test_an_import_at_run_time_is_refused(
    package: Callable[..., nn.Module], statement: str
) -> None:
    late = NET.replace("        return helpers", f"        {statement}\n        return helpers")
    with pytest.raises(Unfingerprintable, match=r"forward: imports .* when it is called"):
        fingerprint_model(
            package(late.replace("from users_models import helpers\n\n", "\n"), HELPERS)
        )


def test_an_import_of_a_release_at_run_time_is_fine(package: Callable[..., nn.Module]) -> None:
    late = NET.replace("        return", "        import torchvision.ops\n        return")
    assert fingerprint_model(package(late, HELPERS)) != fingerprint_model(package(NET, HELPERS))


def test_operators_of_unknown_origin_are_refused() -> None:
    def calls(x: Tensor) -> Tensor:
        return torch.ops.mine.twice(x)

    ops = torch.ops.mine
    with pytest.raises(Unfingerprintable, match=r"value: calls an operator of torch\.ops\.mine"):
        fingerprint(calls)
    with pytest.raises(Unfingerprintable, match=r"\.ops: calls an operator of torch\.ops\.mine"):
        fingerprint(lambda x: ops.twice(x))
    assert fingerprint(lambda x: torchvision.ops.nms(x)) != fingerprint(lambda x: x)
    assert fingerprint(lambda x: torch.ops.aten.relu(x)) != fingerprint(lambda x: x)


def _set_weight(net: Scaled) -> None:
    with torch.no_grad():
        net.body[0].weight[2, 3] += 1e-6


def _set_forward(net: Scaled) -> None:
    net.forward = types.MethodType(lambda self, x: x * 2, net)


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "weight": _set_weight,
    "buffer": lambda net: net.norm.running_mean.add_(1),
    "non-persistent buffer": lambda net: net.offset.add_(1),
    "dtype": lambda net: net.double(),
    "attribute": lambda net: setattr(net, "scale", 2.0),
    "type of an attribute": lambda net: setattr(net, "scale", 1),
    "new attribute": lambda net: setattr(net, "mode", "fast"),
    "plain tensor": lambda net: setattr(net, "mask", torch.ones(2)),
    "attribute of a submodule": lambda net: setattr(net.norm, "eps", 1e-3),
    "function": lambda net: setattr(net, "act", torch.relu),
    "instance's forward": _set_forward,
    "activation": lambda net: net.body.__setitem__(1, nn.GELU()),
    "same module twice": lambda net: net.body.append(net.body[1]),
    "order": lambda net: setattr(net, "body", nn.Sequential(*reversed(net.body))),
    "name": lambda net: net.register_buffer("offset2", net._buffers.pop("offset")),
    "missing bias": lambda net: setattr(net.body[0], "bias", None),
    "parametrization": lambda net: nn.utils.parametrizations.weight_norm(net.body[0]),
    "pruning mask": lambda net: prune.identity(net.body[0], "weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_model_shows(change: str) -> None:
    net = model()
    before = fingerprint_model(net)
    CHANGES[change](net)
    assert fingerprint_model(net) != before
    assert fingerprint_model(net) == fingerprint_model(net)


@pytest.mark.parametrize(
    "place", [(nn.Linear, "forward"), (nn.Module, "__call__"), (nn.functional, "relu")]
)
def test_a_changed_library_shows(monkeypatch: pytest.MonkeyPatch, place: tuple[Any, str]) -> None:
    before = fingerprint_model(model())
    monkeypatch.setattr(*place, lambda *arguments: arguments[-1])
    assert fingerprint_model(model()) != before


def test_a_changed_class_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint_model(model())
    monkeypatch.setattr(Scaled, "forward", lambda self, x: x)
    assert fingerprint_model(model()) != before


def test_what_has_no_influence_is_left_out() -> None:
    net = model()
    before = fingerprint_model(net)
    net.train()
    net.norm.eval()
    net.requires_grad_(False)
    net.body[0].weight.grad = torch.ones(3, 4)
    net.register_state_dict_post_hook(lambda *arguments: None)
    assert fingerprint_model(net) == before
    assert fingerprint_model(nn.DataParallel(net)) == before
    assert fingerprint_model(torch.compile(net)) == before
    assert fingerprint_model(nn.Sequential(nn.DataParallel(net))) == fingerprint_model(
        nn.Sequential(net)
    )
    assert fingerprint_model(copy.deepcopy(net)) == before


def test_the_model_is_left_as_it_was() -> None:
    net = model().train()
    state = copy.deepcopy(net.state_dict())
    attributes = {name: {**vars(module)} for name, module in net.named_modules()}
    fingerprint_model(net)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key])
    assert {name: {**vars(module)} for name, module in net.named_modules()} == attributes


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda net: net.register_forward_hook(lambda module, x, y: y * 2),
    "before forward": lambda net: net.register_forward_pre_hook(lambda module, x: x),
    "backward": lambda net: net.register_full_backward_hook(lambda module, x, y: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_refused(kind: str) -> None:
    net = model()
    HOOKS[kind](net.norm)
    with pytest.raises(Unfingerprintable, match=r"^model\.norm: a hook may change outputs"):
        fingerprint_model(net)


def test_a_hook_on_all_modules_is_refused() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda module, x, y: None)
    try:
        with pytest.raises(Unfingerprintable, match="hook on all modules"):
            fingerprint_model(model())
    finally:
        handle.remove()


def test_hooks_of_torch_itself_are_told_apart() -> None:
    def normed(rounds: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.utils.spectral_norm(nn.Linear(4, 3), n_power_iterations=rounds)

    assert fingerprint_model(normed(1)) == fingerprint_model(normed(1))
    assert fingerprint_model(normed(1)) != fingerprint_model(normed(2))


class Activated(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.head(x))


def exported(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    return torch.export.export(Activated(activation), (torch.rand(2, 4),)).module()


def traced(activation: Callable[[Tensor], Tensor]) -> nn.Module:
    return torch.fx.symbolic_trace(Activated(activation))


@pytest.mark.parametrize("make", [exported, traced])
def test_graphs_are_told_by_their_code_and_weights(make: Callable[..., nn.Module]) -> None:
    before = fingerprint_model(make(torch.relu))
    assert fingerprint_model(make(torch.relu)) == before
    assert fingerprint_model(make(torch.tanh)) != before
    assert fingerprint_model(make(lambda x: torch.relu(x) * 2)) != before
    changed = make(torch.relu)
    with torch.no_grad():
        changed.get_parameter("head.weight")[0, 0] += 1
    assert fingerprint_model(changed) != before


def test_an_edited_graph_shows_before_it_is_compiled() -> None:
    graph = traced(torch.relu)
    before = fingerprint_model(graph)
    for node in graph.graph.nodes:
        node.target = torch.tanh if node.target is torch.relu else node.target
    assert fingerprint_model(graph) != before


def test_libraries_preprocessing_is_told_by_its_settings() -> None:
    def transforms(size: int, mean: float) -> Any:
        t = torchvision.transforms
        return t.Compose([t.Resize(size), t.ToTensor(), t.Normalize([mean] * 3, [1.0] * 3)])

    digests = [fingerprint(transforms(*values)) for values in ((8, 0.5), (9, 0.5), (8, 0.4))]
    assert len(set(digests)) == 3
    assert fingerprint(transforms(8, 0.5)) == digests[0]


class _Holder:
    def __init__(self, generator: Any) -> None:
        self.generator = generator


class _Lazy:
    @property
    def __dict__(self) -> Any:
        raise KeyError("not loaded yet")


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "torch generator": (torch.Generator, "gives other values each time"),
    "python generator": (random.Random, "gives other values each time"),
    "numpy generator": (np.random.default_rng, "gives other values each time"),
    "old numpy generator": (np.random.RandomState, "gives other values each time"),
    "iterator": (lambda: iter([1]), "gives other values each time"),
    "generator function": (lambda: (i for i in [1]), "gives other values each time"),
    "file": (io.BytesIO, "gives other values each time"),
    "lock": (threading.Lock, "state that cannot be seen"),
    "thread-local": (threading.local, "state that cannot be seen"),
    "object array": (lambda: np.array([{}]), "no plain array"),
    "masked array": (lambda: np.ma.array([1]), "no plain array"),
    "sparse tensor": (lambda: torch.eye(2).to_sparse(), "no plain tensor"),
    "quantized tensor": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        "no plain tensor",
    ),
    "lazy parameter": (lambda: nn.UninitializedParameter(), "no plain tensor"),
    "meta tensor": (lambda: torch.empty(2, device="meta"), "no values"),
    "object that fails": (_Lazy, "not loaded yet"),
    "own ufunc": (lambda: np.frompyfunc(abs, 1, 1), "cannot be found"),
    "TorchScript": (lambda: torch.jit.script(nn.ReLU()), "TorchScript has state"),
}


@pytest.mark.parametrize("what", REFUSED)
# Torch calls quantization and TorchScript deprecated.
@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:`torch.jit.script`")
def test_what_cannot_be_seen_is_refused_by_its_place(what: str) -> None:
    make, why = REFUSED[what]
    transforms = torchvision.transforms.Compose([None, _Holder(make())])
    with pytest.raises(
        Unfingerprintable, match=rf"^preprocess\.transforms\[1\]\.generator: .*{why}"
    ):
        fingerprint(transforms, "preprocess")


def of_many_kinds(weights: Path) -> list[str]:
    net = Scaled()
    net.load_state_dict(torch.load(weights, weights_only=True))
    torch.manual_seed(0)
    values: list[Any] = [
        net,
        {"a", "b", "c", ("d", 1)},
        lambda x: x in {"a", "b", "c"},
        [functools.partial(max, 1), "".join, net.forward, property(len), Slotted(1), Colour.RED],
        [re.compile("a"), np.sqrt, slice(1), torch.Size([1]), range(3), Pair(1, 2), {}.items],
        traced(torch.relu),
        exported(torch.relu),
        torchvision.models.mobilenet_v3_small(),
        torchvision.models.ResNet18_Weights.DEFAULT.transforms(),
    ]
    return [fingerprint(value) for value in values]


def test_other_processes_say_the_same(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(model().state_dict(), weights)
    here = of_many_kinds(weights)
    assert here[0] == fingerprint_model(model())
    code = f"from test_fingerprint import *; print(*of_many_kinds({str(weights)!r}))"
    # Two fresh ones: what other tests imported may have patched torch here.
    one, other = (
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for hash_seed in ("1", "2")
    )
    assert one == other
    assert len(one) == len(here)


def test_files_are_told_by_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    names = [f"sub/{number}.jpg" for number in range(150)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode() * 10)
    before = fingerprint_files(tmp_path, names)
    assert fingerprint_files(tmp_path, names) == before
    assert fingerprint_files(tmp_path, names[:-1]) != before
    assert fingerprint_files(tmp_path, names[::-1]) != before
    (tmp_path / names[-1]).rename(tmp_path / "sub/other.jpg")
    assert fingerprint_files(tmp_path, [*names[:-1], "sub/other.jpg"]) != before
    (tmp_path / "sub/other.jpg").rename(tmp_path / names[-1])
    (tmp_path / names[100]).write_bytes(b"changed")
    assert fingerprint_files(tmp_path, names) != before


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unfingerprintable, match=r"absent\.jpg: No such file"):
        fingerprint_files(tmp_path, ["absent.jpg"])


def test_a_masked_model_is_told_from_another_mask_and_from_none():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    x = torch.rand(2, 3, 8, 8)

    def masked(*units):
        return wm.apply_mask(model, wm.FeatureMask(units, 4), example=x)

    plain = fingerprint_model(model)
    one = fingerprint_model(masked(1))
    assert one == fingerprint_model(masked(1))
    assert len({plain, one, fingerprint_model(masked(2)), fingerprint_model(masked(1, 2))}) == 4
    again = wm.remove_mask(masked(1))
    assert fingerprint_model(again) == plain
