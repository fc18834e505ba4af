"""Features are found by what goes in and what comes out, whatever code makes the logits of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.reading.activations import ActivationRecorder

WIDTH, CLASSES = 24, 10


class Net(nn.Module):
    """Maps of 24 channels; what makes the output of them differs."""

    def __init__(self, finish: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, WIDTH, 5, 4)
        self.head = nn.Conv2d(WIDTH, CLASSES, 1)
        self.fc = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("prototypes", functional.normalize(torch.randn(CLASSES, WIDTH), dim=1))
        self.finish = finish

    def maps(self, x: Tensor) -> Tensor:
        return self.stem(x).relu()

    def forward(self, x: Tensor) -> Any:
        return self.finish(self, self.maps(x))


class Pool(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


def pooled_net(finish: Callable[[Net, Tensor], Any]) -> Net:
    """Give the pooling a module of its own, so that features pass between modules."""
    net = Net(lambda net, maps: finish(net, net.pool(maps)))
    net.pool = Pool()
    return net.eval()


CONVOLUTIONAL = {
    "[B, C, 1, 1]": lambda net, maps: net.head(maps.mean((2, 3), keepdim=True)),
    "global max": lambda net, maps: net.head(maps).amax((2, 3)),
    "tanh": lambda net, maps: net.head(maps).mean((2, 3)).tanh(),
    "two groups of classes": lambda net, maps: torch.cat(
        [net.head(maps).mean((2, 3)), net.head(maps.flip(1)).mean((2, 3))], 1
    ),
    "doubled batch": lambda net, maps: (
        net.head(torch.cat([maps, maps.flip(3)])).mean((2, 3)).view(2, len(maps), -1).mean(0)
    ),
    "neighbours in a batch": lambda net, maps: (
        net.head(torch.stack([maps, maps.flip(3)], 1).flatten(0, 1))
        .mean((2, 3))
        .view(len(maps), 2, -1)
        .mean(1)
    ),
    "one image after another": lambda net, maps: torch.stack(
        [net.head(one[None]).mean((2, 3))[0] for one in maps]
    ),
    "one logit": lambda net, maps: net.head(maps).mean((2, 3))[:, 0],
    "scaled softmax": lambda net, maps: (100 * net.head(maps).mean((2, 3))).softmax(1),
}
FUNCTIONAL = {
    "prototypes": lambda net, features: features @ net.prototypes.T,
    "cosine": lambda net, features: 30 * functional.normalize(features, dim=1) @ net.prototypes.T,
    "F.linear": lambda net, features: functional.linear(features, net.fc.weight, net.fc.bias),
    "distances": lambda net, features: -torch.cdist(features, net.prototypes),
}


@pytest.fixture
def x() -> Tensor:
    return torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def record(model: nn.Module, x: Tensor, *layers: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    with ActivationRecorder(model, layers or ("logits", "features"), x) as recorder:
        return recorder(x), recorder.notes


@pytest.mark.parametrize("kind", CONVOLUTIONAL)
def test_heads_made_of_convolutions(kind: str, x: Tensor) -> None:
    model = Net(CONVOLUTIONAL[kind]).eval()
    read, _ = record(model, x)
    assert [*read] == ["logits", "features"]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.maps(x).mean((2, 3)))
        torch.testing.assert_close(read["logits"], model(x).reshape(len(x), -1))
        other = torch.rand(7, 3, 64, 64)  # another number of images than what they were found by
        again = wm.extract_features(model, other)
        torch.testing.assert_close(again, model.maps(other).mean((2, 3)))


@pytest.mark.parametrize("kind", FUNCTIONAL)
def test_heads_that_are_no_module(kind: str, x: Tensor) -> None:
    model = pooled_net(FUNCTIONAL[kind])
    read, notes = record(model, x)
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.maps(x).mean((2, 3)))
        torch.testing.assert_close(read["logits"], model(x))
    assert "found by trying to be the output of 'pool'" in notes[0]


def _spectral(module: nn.Linear) -> object:
    return nn.utils.parametrizations.spectral_norm(module)


def _weight(module: nn.Linear) -> object:
    return nn.utils.parametrizations.weight_norm(module)


def _orthogonal(module: nn.Linear) -> object:
    return nn.utils.parametrizations.orthogonal(module)


@pytest.mark.parametrize("change", [_weight, _spectral, _orthogonal])
def test_parametrised_heads(change: Callable[[nn.Linear], object], x: Tensor) -> None:
    model = pooled_net(lambda net, features: net.fc(features))
    change(model.fc)
    model.eval()
    read, notes = record(model, x)
    assert not notes
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.maps(x).mean((2, 3)))


# Torch calls its own quantisation deprecated.
@pytest.mark.filterwarnings("ignore")
def test_a_quantised_head(x: Tensor) -> None:
    model = pooled_net(lambda net, features: net.fc(features))
    plain = wm.extract_features(model, x)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    read, _ = record(quantised, x)
    torch.testing.assert_close(read["features"], plain)
    assert read["logits"].shape == (4, CLASSES)


OUTPUTS = {
    "features first": lambda net, features: (features, net.fc(features)),
    "logits first": lambda net, features: (net.fc(features), features),
    "a dictionary": lambda net, features: {"embedding": features, "scores": net.fc(features)},
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_features_beside_the_logits_are_not_taken_for_them(kind: str, x: Tensor) -> None:
    model = pooled_net(OUTPUTS[kind])
    read, _ = record(model, x)
    with torch.no_grad():
        features = model.maps(x).mean((2, 3))
        torch.testing.assert_close(read["logits"], model.fc(features))
        torch.testing.assert_close(read["features"], features)


def test_every_output_is_probed_under_its_own_name(x: Tensor) -> None:
    model = pooled_net(
        lambda net, features: {"colour": net.fc(features), "shape": net.other(features)}
    )
    model.other = nn.Linear(WIDTH, 3)
    read, _ = record(model, x)
    assert [*read] == ["logits", "logits[shape]", "features"]
    with torch.no_grad():
        torch.testing.assert_close(read["logits[shape]"], model(x)["shape"])


BACKBONES = {
    "pooled maps": lambda net, features: features,
    "normalised": lambda net, features: functional.normalize(features),
    "a norm behind": lambda net, features: net.norm(features),
}


@pytest.mark.parametrize("kind", BACKBONES)
def test_a_backbone_s_output_is_its_features(kind: str, x: Tensor) -> None:
    model = pooled_net(BACKBONES[kind])
    model.norm = nn.LayerNorm(WIDTH)
    read, notes = record(model, x)
    assert [*read] == ["features"]
    assert "no head found" in notes[0]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model(x))


def test_of_several_maps_the_deepest_is_read(x: Tensor) -> None:
    model = Net(lambda net, maps: [maps, functional.max_pool2d(maps, 2)]).eval()
    read, _ = record(model, x, "features")
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model(x)[1].mean((2, 3)))


@pytest.mark.parametrize(
    "finish",
    [
        lambda net, maps: {"out": net.head(maps)},
        lambda net, maps: (net.head(maps).flatten(2), [maps]),
        lambda net, maps: {"logits": net.head(maps).flatten(2).mT, "pred_boxes": maps.flatten(2)},
    ],
)
def test_dense_predictions_are_refused(finish: Callable[[Net, Tensor], Any], x: Tensor) -> None:
    with pytest.raises(LayerError, match=r"wrap the model so that forward returns"):
        record(Net(finish).eval(), x)


def test_the_image_is_never_its_features(x: Tensor) -> None:
    class Tower(nn.Module):  # projects by a parameter of its own, as CLIP's image tower
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, WIDTH, 5, 4)
            self.norm = nn.LayerNorm(WIDTH)
            self.projection = nn.Parameter(torch.randn(WIDTH, CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.stem(x).mean((2, 3))) @ self.projection

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = Tower()

        def forward(self, x: Tensor) -> Tensor:
            return functional.normalize(self.visual(x), dim=-1)

    model = Model().eval()
    read, _ = record(model, x)
    with torch.no_grad():
        expected = model.visual.norm(model.visual.stem(x).mean((2, 3)))
    torch.testing.assert_close(read["features"], expected)


def test_what_the_output_is_can_be_said(x: Tensor) -> None:
    embedding = pooled_net(lambda net, features: features)
    with ActivationRecorder(embedding, ("logits", "features"), x, outputs="logits") as recorder:
        read = recorder(x)
    assert [*read] == ["logits"]
    assert "features are not probed" in recorder.notes[0]
    projected = pooled_net(lambda net, features: net.fc(features))
    projected.outputs = "features"
    read, _ = record(projected, x)
    assert [*read] == ["features"]
    with torch.no_grad():
        torch.testing.assert_close(read["features"], projected(x))


def test_a_probe_goes_by_what_the_output_is_said_to_be() -> None:
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = pooled_net(lambda net, features: net.fc(features))
    layers = []
    for outputs in ("auto", "features", "auto"):
        report = wm.probe(model, images, ("latin",), preprocess="none", outputs=outputs)
        layers.append(report.layers)
    assert layers == [("logits", "features"), ("features",), ("logits", "features")]


def test_a_named_layer_of_a_detector_is_read(x: Tensor) -> None:
    model = Net(lambda net, maps: {"boxes": net.head(maps).flatten(2), "maps": maps}).eval()
    with pytest.raises(LayerError, match=r"a dense prediction: .*\(layers="):
        record(model, x)
    read, _ = record(model, x, "stem")
    with torch.no_grad():
        torch.testing.assert_close(read["stem"], model.stem(x).mean((2, 3)))


# Torch calls TorchScript deprecated.
@pytest.mark.filterwarnings("ignore")
def test_outputs_of_scripted_and_exported_models_are_all_probed(x: Tensor) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, WIDTH, 5, 4)
            self.one, self.two = nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.stem(x).relu().mean((2, 3))
            return self.one(features), self.two(features)

    model = Two().eval()
    for made in (torch.jit.trace(model, x), torch.export.export(model, (x,)).module()):
        read, _ = record(made, x, "logits")
        assert [*read] == ["logits", "logits[1]"]
        with torch.no_grad():
            torch.testing.assert_close(read["logits[1]"], model(x)[1])
    with ActivationRecorder(torch.jit.trace(model, x), "features", x, outputs="features") as said:
        assert [*said(x)] == ["features", "features[1]"]


def test_padded_batches_mix_no_images(x: Tensor) -> None:
    model = Net(CONVOLUTIONAL["doubled batch"]).eval()
    with ActivationRecorder(model, ("features",), x) as found:
        twin = found.copied()
        assert twin is not None
        with twin:
            twin._reader.batch_size = 8  # as a model that was compiled for batches of 8
            padded = twin(x)["features"]
        torch.testing.assert_close(padded, found(x)["features"])


def test_what_has_another_number_of_rows_is_no_output(x: Tensor) -> None:
    model = pooled_net(lambda net, features: (net.fc(features), net.prototypes, net.scale))
    model.register_buffer("scale", torch.ones(1))
    read, _ = record(model, x)
    assert [*read] == ["logits", "features"]


def test_pooled_sequences_hold_units(x: Tensor) -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.pool = nn.Conv2d(3, WIDTH, 5, 4), nn.AdaptiveAvgPool1d(1)
            self.register_buffer("prototypes", torch.randn(CLASSES, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return self.pool(self.stem(x).flatten(2)).flatten(1) @ self.prototypes.T

    model = Transposed().eval()
    for layer in ("features", "pool"):
        read, _ = record(model, x, layer)
        with torch.no_grad():
            torch.testing.assert_close(read[layer], model.stem(x).mean((2, 3)))


def test_a_cut_network_that_ends_in_pointwise_convolutions_is_a_backbone(x: Tensor) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU6(), nn.Conv2d(8, WIDTH, 1), nn.BatchNorm2d(WIDTH)]
    model = nn.Sequential(*layers, nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    read, notes = record(model, x)
    assert [*read] == ["features"]
    assert "no head found" in notes[0]


def test_a_shared_activation_adds_no_earlier_layer(x: Tensor) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.act = nn.Conv2d(3, WIDTH, 5, 4), nn.ReLU()
            self.one, self.two = nn.Linear(WIDTH, 32), nn.Linear(32, 16)
            self.register_buffer("prototypes", torch.randn(CLASSES, 16))

        def hidden(self, x: Tensor) -> Tensor:
            x = self.act(self.stem(x)).mean((2, 3))
            return self.act(self.two(self.act(self.one(x))))

        def forward(self, x: Tensor) -> Tensor:
            return functional.normalize(self.hidden(x)) @ self.prototypes.T

    model = Shared().eval()
    read, _ = record(model, x)
    with torch.no_grad():
        torch.testing.assert_close(read["features"], model.hidden(x))


def test_a_method_called_weight_is_not_called(x: Tensor) -> None:
    class Weighing(nn.Identity):
        def weight(self, unit: int) -> float:
            raise AssertionError(unit)

    model = pooled_net(lambda net, features: net.fc(net.scales(features)))
    model.scales = Weighing()
    read, _ = record(model, x)
    assert read["logits"].shape == (4, CLASSES)


@pytest.mark.parametrize("probabilities", [False, True])
def test_the_logits_of_views_are_no_features(probabilities: bool, x: Tensor) -> None:
    """Also where no layer returns them: the head is a function."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pooled_net(FUNCTIONAL["prototypes"])

        def forward(self, x: Tensor) -> Tensor:
            views = torch.stack([self.net(x), self.net(x.flip(3) ** 2)])
            return (views.softmax(-1) if probabilities else views).mean(0)

    model = Views().eval()
    read, notes = record(model, x)
    assert "'net.pool'" in notes[0]
    with torch.no_grad():
        parts = [model.net.maps(view).mean((2, 3)) for view in (x, x.flip(3) ** 2)]
    torch.testing.assert_close(read["features"], torch.cat(parts, dim=1))
