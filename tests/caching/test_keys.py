"""Keys tell data, weights and files apart; what code does is checked by numbers, elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import enum
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import pytest_watermark_guard as wm
from pytest_watermark_guard.caching.keys import NoKeyError, digest


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Any
    right: Any


class Holder:
    def __init__(self, **values: Any) -> None:
        self.__dict__ = values


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
    None, True, 1, 1.0, 1j, "1", b"1", Path("1"), Level.ONE, Colour.RED, Colour.BLUE,
    0.0, -0.0, float("nan"), (), [], {}, set(), frozenset(), "", b"", (None,), [None],
    ("a", "b"), ("ab",), ["a", "b"], [["a"], "b"], [["a", "b"]], ("a", ("b",)), {"a", "b"},
    {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": "b"}, {"ab": None}, Holder(a=1), Holder(a=2),
    np.float32(1), np.float64(1), np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32),
    np.zeros(4, np.float32), np.zeros(2, ">f4"), np.array(["a", None]), torch.zeros(2),
    torch.zeros(2, 1), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16),
    torch.zeros(4), torch.zeros(0), torch.zeros(()), torch.float32, torch.float64,
    torch.device("cpu"), "cpu", torch.Size([2]), Pair(1, 2), Pair(2, 1), int, float, Pair, len,
    max, torch.relu, torch.sigmoid, np.dtype("f4"), functools.partial(max, 1),
    functools.partial(max, 2), functools.partial(max, default=1), nn.ReLU(), nn.GELU(),
    nn.GELU("tanh"), nn.Identity(), torch.eye(2).to_sparse(),
]  # fmt: skip


def test_no_two_different_values_are_alike() -> None:
    digests = [digest(value) for value in DIFFERENT]
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
    assert (digest(left) == digest(right)) == (repr(left) == repr(right))
    assert digest(left) == digest(copy.deepcopy(left))


def test_a_lone_surrogate_is_text() -> None:
    assert digest("\udcff") != digest("\udcfe")


def test_the_order_of_a_set_does_not_matter() -> None:
    # With these the slots of the hash table collide.
    assert digest({0, 8, 16}) == digest({16, 8, 0})
    assert digest({("a", 1), ("b", 2)}) == digest({("b", 2), ("a", 1)})


def test_circles_end() -> None:
    def knot(end: int) -> list[Any]:
        values: list[Any] = [end]
        values.append({"self": values})
        return values

    assert digest(knot(1)) == digest(knot(1)) != digest(knot(2))


def test_what_is_nested_too_deeply_has_no_key() -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(NoKeyError, match="RecursionError"):
        digest(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_tensor_is_its_numbers_wherever_they_lie(dtype: torch.dtype) -> None:
    values = (torch.arange(24).reshape(2, 3, 4) % 5).to(dtype)
    spread = torch.zeros(2, 3, 8, dtype=dtype)[..., ::2].copy_(values)
    turned = values.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert digest(values) == digest(spread) == digest(turned)
    changed = values.clone()
    changed[1, 2, 3] = 0
    assert digest(values) != digest(changed)


def test_a_lazily_conjugated_tensor_is_its_values() -> None:
    tensor = torch.tensor([1 + 2j])
    assert digest(tensor.conj()) == digest(torch.tensor([1 - 2j])) != digest(tensor)


def test_an_array_is_its_numbers_wherever_they_lie(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    np.save(tmp_path / "a.npy", values)
    mapped = np.asarray(np.load(tmp_path / "a.npy", mmap_mode="r"))
    assert digest(values) == digest(np.asfortranarray(values)) == digest(mapped)


class TwoParts(Tensor):
    """A tensor subclass that, like those of quantisation libraries, says what it is made of."""

    @staticmethod
    def __new__(cls, low: Tensor, high: Tensor) -> TwoParts:
        return Tensor._make_wrapper_subclass(cls, low.shape, dtype=low.dtype)

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["low", "high"], {"scheme": "two"}

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} on {cls.__name__}")


def test_a_tensor_subclass_is_told_by_its_parts() -> None:
    def made(value: float) -> nn.Module:
        net = nn.Linear(2, 2, bias=False)
        parts = torch.ones(2, 2), torch.full((2, 2), value)
        net.weight = nn.Parameter(TwoParts(*parts), requires_grad=False)
        return net

    assert digest(made(1)) == digest(made(1)) != digest(made(2))


# Torch calls its own quantisation deprecated.
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_model_is_told_by_its_packed_weights() -> None:
    def made(change: float) -> nn.Module:
        net = model().eval()
        with torch.no_grad():
            net.body[0].weight[0, 0] += change
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})

    assert digest(made(0)) == digest(made(0)) != digest(made(1))
    values = torch.ones(2)
    one, other = (torch.quantize_per_tensor(values, scale, 0, torch.qint8) for scale in (1.0, 0.5))
    assert digest(one) != digest(other)
    channels = torch.quantize_per_channel(
        torch.ones(2, 2), torch.tensor([1.0, 0.5]), torch.tensor([0, 0]), 0, torch.qint8
    )
    assert digest(channels) == digest(channels.clone())


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_told_by_its_weights() -> None:
    def made(change: float) -> nn.Module:
        net = model().eval()
        with torch.no_grad():
            net.body[0].weight[0, 0] += change
        return torch.jit.script(net)

    assert digest(made(0)) == digest(made(0)) != digest(made(1))


def _set_weight(net: Scaled) -> None:
    with torch.no_grad():
        net.body[0].weight[2, 3] += 1e-6


CHANGES: dict[str, Callable[[Scaled], object]] = {
    "weight": _set_weight,
    "buffer": lambda net: net.norm.running_mean.add_(1),
    "non-persistent buffer": lambda net: net.offset.add_(1),
    "dtype": lambda net: net.double(),
    "attribute": lambda net: setattr(net, "scale", 2.0),
    "type of an attribute": lambda net: setattr(net, "scale", 1),
    "new attribute": lambda net: setattr(net, "mode", "fast"),
    "attribute in a list": lambda net: setattr(net, "sizes", [1, {"a": 2}]),
    "plain tensor": lambda net: setattr(net, "mask", torch.ones(2)),
    "attribute of a submodule": lambda net: setattr(net.norm, "eps", 1e-3),
    "function": lambda net: setattr(net, "act", torch.relu),
    "activation": lambda net: net.body.__setitem__(1, nn.GELU()),
    "same module twice": lambda net: net.body.append(net.body[1]),
    "order": lambda net: setattr(net, "body", nn.Sequential(*reversed(net.body))),
    "name": lambda net: net.register_buffer("offset2", net._buffers.pop("offset")),
    "missing bias": lambda net: setattr(net.body[0], "bias", None),
    "parametrization": lambda net: nn.utils.parametrizations.weight_norm(net.body[0]),
    "pruning mask": lambda net: prune.identity(net.body[0], "weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_model_s_state_shows(change: str) -> None:
    net = model()
    before = digest(net)
    CHANGES[change](net)
    assert digest(net) != before
    assert digest(net) == digest(net)


def test_what_has_no_influence_is_left_out() -> None:
    net = model()
    before = digest(net)
    net.train()
    net.norm.eval()
    net.requires_grad_(False)
    net.body[0].weight.grad = torch.ones(3, 4)
    assert digest(net) == before
    assert digest(copy.deepcopy(net)) == before


def test_wrappers_do_not_matter() -> None:
    net = model()
    assert digest(nn.DataParallel(net)) == digest(torch.compile(net)) == digest(net)


def test_a_masked_model_is_told_from_another_mask_and_from_none() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(2, 3, 8, 8)

    def masked(*units: int) -> nn.Module:
        return wm.apply_mask(net, wm.FeatureMask(units, 4), example=x)

    plain = digest(net)
    one = digest(masked(1))
    assert one == digest(masked(1))
    assert len({plain, one, digest(masked(2)), digest(masked(1, 2))}) == 4
    assert digest(wm.remove_mask(masked(1))) == plain


def test_libraries_preprocessing_is_told_by_its_settings() -> None:
    def transforms(size: int, mean: float) -> Any:
        t = torchvision.transforms
        return t.Compose([t.Resize(size), t.ToTensor(), t.Normalize([mean] * 3, [1.0] * 3)])

    digests = [digest(transforms(*values)) for values in ((8, 0.5), (9, 0.5), (8, 0.4))]
    assert len(set(digests)) == 3
    assert digest(transforms(8, 0.5)) == digests[0]


class Unreadable:
    @property
    def __dict__(self) -> Any:
        raise KeyError("not loaded yet")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.empty(2, device="meta"), "on the meta device has no values"),
        (nn.UninitializedParameter(), "has no values"),
        (Unreadable(), "KeyError: 'not loaded yet'"),
    ],
)
def test_what_has_no_values_has_no_key(value: Any, why: str) -> None:
    with pytest.raises(NoKeyError, match=why):
        digest(["nested", value])


def of_many_kinds(weights: Path) -> list[str]:
    net = Scaled()
    net.load_state_dict(torch.load(weights, weights_only=True))
    values: list[Any] = [
        net,
        {"a", "b", "c", ("d", 1)},
        [functools.partial(max, 1), Colour.RED, np.sqrt, torch.Size([1]), Pair(1, 2)],
        torchvision.models.ResNet18_Weights.DEFAULT.transforms(),
    ]
    return [digest(value) for value in values]


def test_other_processes_say_the_same(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    torch.save(model().state_dict(), weights)
    code = f"from test_keys import *; print(*of_many_kinds({str(weights)!r}))"
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
    assert len(set(one)) == len(of_many_kinds(weights))
