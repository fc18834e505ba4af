"""Layers inside of torch.vmap are not read, and what is around them, or in torch.func.vjp, is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vjp, vmap

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import LayerError
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

    def __init__(self, make: Callable[[], nn.Module] = Net) -> None:
        super().__init__()
        self.net = make()
        weights, _ = stack_module_state([make() for _ in range(3)])
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


class Attention(Net):
    """Its attention returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def features(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].mean(1)


class InVjp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return vjp(self.net, x)[0]


class Twice(nn.Module):
    """One layer runs outside and inside."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def features(self, x: Tensor) -> Tensor:
        mirrored = vmap(lambda image: self.net.stem(image[None])[0])(x.flip(3))
        return self.net.features(x) + mirrored.relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net.fc(self.features(x))


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 5))


MODELS = {
    "stacked": Stacked,
    "per image": PerImage,
    "a layer without weights behind": lambda: nn.Sequential(Stacked(), nn.Softmax(1)),
    "a layer without weights before": lambda: nn.Sequential(nn.Dropout(), Stacked()),
    "a layer that only the image goes into": lambda: Stacked(flat),
    "attention": lambda: Stacked(Attention),
}


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(4, 3, 16, 16)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of attention
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_networks_inside_show_their_logits(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = make().eval()
    with torch.no_grad(), ActivationRecorder(model, LAYERS, x) as recorder:
        found = recorder(x)
        assert found.keys() == {"logits"}
        torch.testing.assert_close(found["logits"], model(x))
    (note,) = recorder.notes
    assert "features are not probed" in note
    assert "torch.vmap" in note


@pytest.mark.parametrize("kind", [Heads, InVjp])
def test_features_outside_are_found(kind: type[nn.Module], x: Tensor) -> None:
    model = kind().eval()
    with torch.no_grad():
        torch.testing.assert_close(wm.extract_features(model, x), model.net.features(x))


def test_a_layer_outside_and_inside(x: Tensor) -> None:
    model = Twice().eval()
    with torch.no_grad():
        torch.testing.assert_close(wm.extract_features(model, x), model.features(x))
    with pytest.raises(LayerError, match=r"'net\.stem' runs inside of torch\.vmap"):
        ActivationRecorder(model, ("net.stem",), x)
