"""Finding logits, features and named layers in models of many habits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.reading.activations import ActivationRecorder, extract_features


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def record(model: nn.Module, x: Tensor, *layers: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    with ActivationRecorder(model, layers or ("logits", "features"), x) as recorder:
        return recorder(x), recorder.notes


class Net(nn.Module):
    """A small network of which a subclass writes the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 7, 3)
        self.norm = nn.BatchNorm2d(7)
        self.head = nn.Linear(7, 5)
        self.other = nn.Linear(7, 5)
        self.conv_head = nn.Conv2d(7, 5, 1)

    def maps(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm(self.stem(x)))

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.finish(x)

    finish: Callable[[Tensor], Any]


def net(finish: Callable[[Net, Tensor], Any]) -> Net:
    model = Net()
    model.finish = lambda x: finish(model, x)
    return model.eval()


HEADS = {
    "plain": lambda m, x: m.head(m.features(x)),
    "dropout in place": lambda m, x: m.head(functional.dropout(m.features(x), 0.5, m.training)),
    "tuple": lambda m, x: (m.head(m.features(x)), m.features(x)),
    "dictionary": lambda m, x: {"logits": m.head(m.features(x)), "maps": m.maps(x)},
    "keyword argument": lambda m, x: m.head(input=m.features(x)),
    "softmax": lambda m, x: m.head(m.features(x)).softmax(-1),
    "log_softmax": lambda m, x: m.head(m.features(x)).log_softmax(-1),
    "sigmoid": lambda m, x: m.head(m.features(x)).sigmoid(),
    "temperature": lambda m, x: m.head(m.features(x)) * 7.5,
    "flipped image averaged": lambda m, x: (m.head(m.features(x)) + m.head(m.features(x))) / 2,
    "reused before": lambda m, x: (m.head(-m.features(x)), m.head(m.features(x)))[1],
    "reused after": lambda m, x: (m.head(m.features(x)), m.head(-m.features(x)))[0],
    "convolution on the map": lambda m, x: m.conv_head(m.maps(x)).mean((2, 3)),
    "convolution, relu, mean": lambda m, x: m.conv_head(m.maps(x)).relu_().mean((2, 3)),
    "linear on pixels": lambda m, x: m.head(m.maps(x).permute(0, 2, 3, 1)).mean((1, 2)),
    "linear on tokens": lambda m, x: m.head(m.maps(x).flatten(2).mT).mean(1),
}


@pytest.mark.parametrize("finish", HEADS.values(), ids=HEADS)
def test_heads(finish: Callable[[Net, Tensor], Any], x: Tensor) -> None:
    model = net(finish)
    read, notes = record(model, x)
    with torch.no_grad():
        output = model(x)
        expected = model.features(x)
    logits = next(iter(output.values())) if isinstance(output, dict) else output
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert notes == ()
    torch.testing.assert_close(read["logits"], logits)
    torch.testing.assert_close(read["features"], expected)


def test_the_first_token_of_a_projected_sequence(x: Tensor) -> None:
    model = net(lambda m, x: m.head(m.maps(x).flatten(2).mT)[:, 0])
    read, _ = record(model, x)
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.maps(x).flatten(2)[:, :, 0])


def test_a_head_behind_an_unknown_operation_is_a_guess(x: Tensor) -> None:
    model = net(lambda m, x: functional.normalize(m.head(m.features(x)) - 3.0))
    read, notes = record(model, x)
    assert "found by trying to be the input of 'head'" in notes[0]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.features(x))


def test_a_projection_that_does_not_make_the_output_is_not_guessed(x: Tensor) -> None:
    class Gate(nn.Module):  # squeeze and excitation at the very end, of the output's width
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate = nn.Conv2d(3, 6, 3), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.stem(x)
            return maps.mean((2, 3)) * self.gate(maps.amax((2, 3))).sigmoid()

    model = Gate()
    read, notes = record(model, x)
    assert "no head found" in notes[0]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model(x))


BACKBONES = {
    "pooled": lambda m, x: m.features(x),
    "map": lambda m, x: m.maps(x),
    "tokens": lambda m, x: m.maps(x).flatten(2).mT,
    "channels-last map": lambda m, x: m.maps(x).permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("finish", BACKBONES.values(), ids=BACKBONES)
def test_backbones(finish: Callable[[Net, Tensor], Tensor], x: Tensor) -> None:
    model = net(finish)
    with ActivationRecorder(model, ("logits", "features"), x) as recorder:
        read = recorder(x)
    assert recorder.layers == ("features",)
    assert read.keys() == {"features"}
    assert "no head found" in recorder.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.features(x))
    with pytest.raises(LayerError, match=r'layers=\("features",\)'):
        ActivationRecorder(model, ("logits",), x)


@pytest.mark.parametrize("cut", ["Identity", "shortened"])
def test_a_hidden_layer_is_not_taken_for_a_head_that_was_cut_off(cut: str, x: Tensor) -> None:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(192, 9), nn.ReLU(inplace=True), nn.Dropout()]
    model = nn.Sequential(*layers, *([nn.Identity()] if cut == "Identity" else []))
    read, notes = record(model, x)
    assert "no head found" in notes[0]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.eval()(x))


def test_wrappers(x: Tensor) -> None:
    model = net(HEADS["plain"])
    expected = extract_features(model, x)

    class Lightning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.register = model, nn.Parameter(torch.zeros(1, 1, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    compiled = net(HEADS["plain"])
    compiled.head.compile(backend=lambda *_: pytest.fail("must run eagerly"))
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model, backend=lambda *_: pytest.fail("must run eagerly")),
        compiled,
        Lightning(),
        nn.Sequential(Lightning(), nn.Dropout()),
    ):
        torch.testing.assert_close(extract_features(wrapped, x), expected)


def test_the_model_is_left_as_it_was(x: Tensor) -> None:
    model = net(HEADS["plain"]).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError), ActivationRecorder(model, ("features",), x) as recorder:
        recorder(torch.zeros(1, 7, 8, 8))
    extract_features(model, x)
    assert all(module.training for module in model.modules())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert torch.is_grad_enabled()


def test_features_do_not_depend_on_the_batch(x: Tensor) -> None:
    model = net(HEADS["plain"])
    with ActivationRecorder(model, ("features",), x) as recorder:
        alone = torch.cat([recorder(image[None])["features"] for image in x])
        torch.testing.assert_close(recorder(x)["features"], alone)
    assert not alone.requires_grad


def test_a_layer_by_name(x: Tensor) -> None:
    model = net(HEADS["plain"])
    read, notes = record(model, x, "logits", "features", "stem", "norm", "head")
    with torch.no_grad():
        maps = model.stem(x)
        torch.testing.assert_close(read["stem"], maps.mean((2, 3)))
        torch.testing.assert_close(read["norm"], model.norm(maps).mean((2, 3)))
    torch.testing.assert_close(read["head"], read["logits"])
    assert notes == ()
    assert list(read) == ["logits", "features", "stem", "norm", "head"]


def test_a_layer_is_read_before_the_next_one_overwrites_it(x: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(inplace=True), nn.Linear(5, 4))
    read, _ = record(model, x, "1")
    with torch.no_grad():
        torch.testing.assert_close(read["1"], model[1](x.flatten(1)))


def test_channels_last_maps_by_name(x: Tensor) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.swin_t(weights=None).eval()
    images = torch.randn(2, 3, 64, 64)
    names = ("features.1", "features.5.0", "features.7", "norm", "permute", "avgpool")
    read, notes = record(model, images, *names)
    shapes = {name: tuple(units.shape) for name, units in read.items()}
    assert shapes == {
        "features.1": (2, 96), "features.5.0": (2, 384), "features.7": (2, 768), "norm": (2, 768),
        "permute": (2, 768), "avgpool": (2, 768),
    }  # fmt: skip
    assert notes == ()
    torch.testing.assert_close(read["norm"], read["permute"])


def test_a_map_that_could_be_read_either_way_is_announced(x: Tensor) -> None:
    # 6 channels of 6x6 pixels; the container does not tell, the convolution in it does.
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), nn.Flatten())
    model.append(nn.Linear(216, 4))
    read, notes = record(model, x, "0", "0.1")
    with torch.no_grad():
        torch.testing.assert_close(read["0"], model[0](x).mean((2, 3)))
    assert "assumed to be [B, C, H, W]" in notes[0]


def test_a_layer_that_runs_twice_is_announced(x: Tensor) -> None:
    model = net(lambda m, x: m.head(m.features(x) + m.features(-x)))
    read, notes = record(model, x, "stem")
    assert "runs 2 times" in notes[0]
    with torch.no_grad():
        torch.testing.assert_close(read["stem"], model.stem(-x).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("sten", r"no layer 'sten': did you mean 'stem'\?.*named_modules"),
        ("", "no layer ''"),
        ("other", "'other' did not run"),
    ],
)
def test_layers_that_are_not_there(layer: str, said: str, x: Tensor) -> None:
    with pytest.raises(LayerError, match=said):
        ActivationRecorder(net(HEADS["plain"]), ("logits", layer), x)


def test_layers_that_do_not_return_one_tensor(x: Tensor) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.head = Pair(), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pair(x)[0].mean((2, 3)))

    with pytest.raises(LayerError, match=r"'pair' returned a tuple.*choose a module inside"):
        ActivationRecorder(Model(), ("pair",), x)


def test_no_layers(x: Tensor) -> None:
    with pytest.raises(LayerError, match="no layers were asked for"):
        ActivationRecorder(net(HEADS["plain"]), (), x)


def test_a_recorder_must_be_entered(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="with statement"):
        ActivationRecorder(net(HEADS["plain"]), ("logits",), x)(x)


def test_an_output_that_is_nothing(x: Tensor) -> None:
    with pytest.raises(LayerError, match="wrap the model"):
        ActivationRecorder(net(lambda m, x: {"boxes": m.maps(x)}), ("logits",), x)


# TorchScript itself is deprecated; which category says so depends on the version.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_has_logits_only(x: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    scripted = torch.jit.trace(model, x)
    read, _ = record(scripted, x, "logits")
    with torch.no_grad():
        torch.testing.assert_close(read["logits"], model(x))
    read, notes = record(scripted, x, "logits", "features")
    assert [*read] == ["logits"]
    assert "features are not probed: a TorchScript module shows what it returns" in notes[0]
    for layers in (("features",), ("logits", "1")):
        with pytest.raises(LayerError, match=r"TorchScript.*layers=\('logits',\)"):
            ActivationRecorder(scripted, layers, x)
