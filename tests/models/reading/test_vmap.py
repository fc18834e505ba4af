"""Layers that run inside of torch.vmap are not read, and what is around them is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.reading.activations import ActivationRecorder

LAYERS = ("logits", "features")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.stem(x).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class Stacked(nn.Module):
    """An ensemble by torch's own recipe."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        weights, _ = stack_module_state([Net() for _ in range(3)])
        self.names = [*weights]
        self.weights = nn.ParameterList(weights.values())

    def forward(self, x: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(self.net, weights, (x,))

        weights = dict(zip(self.names, self.weights, strict=True))
        return vmap(one)(weights).mean(0)


class PerImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return vmap(lambda image: self.net(image[None])[0])(x)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.weights = nn.Parameter(torch.randn(3, 5, 8))

    def forward(self, x: Tensor) -> Tensor:
        features = self.net.features(x)

        def one(weight: Tensor) -> Tensor:
            return functional_call(self.net.fc, {"weight": weight}, (features,))

        return vmap(one)(self.weights).mean(0)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(4, 3, 16, 16)


@pytest.mark.parametrize(
    "make",
    [Stacked, PerImage, lambda: nn.Sequential(Stacked(), nn.Dropout())],
    ids=["stacked", "per image", "another layer outside"],
)
def test_networks_inside_show_their_logits(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = make().eval()
    with torch.no_grad(), ActivationRecorder(model, LAYERS, x) as recorder:
        found = recorder(x)
        assert found.keys() == {"logits"}
        torch.testing.assert_close(found["logits"], model(x))
    (note,) = recorder.notes
    assert "features are not probed" in note
    assert "torch.vmap" in note


def test_features_outside_are_found(x: Tensor) -> None:
    model = Heads().eval()
    with torch.no_grad():
        torch.testing.assert_close(wm.extract_features(model, x), model.net.features(x))
