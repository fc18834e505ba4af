"""Kinds of models that other libraries make, rebuilt here without them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import LayerError, ModelSpecError
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.reading.activations import ActivationRecorder

X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trunk() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 8),
    )


def read(model: nn.Module, **options: Any) -> tuple[dict[str, Tensor], str]:
    recorder = ActivationRecorder(model.eval(), ("logits", "features"), X, **options)
    with recorder:
        return recorder(X), "; ".join(recorder.notes)


class Clip(nn.Module):
    """Embeds pictures, and normalises what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = trunk()

    def encode_image(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.visual(x)
        return embedded

    def forward(self, x: Tensor) -> Any:
        return functional.normalize(self.encode_image(x), dim=-1), None, torch.ones(())


class ZeroShot(Clip):
    """Has the method still, and returns scores; as many as the embedding is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prompts", torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = functional.normalize(self.encode_image(x), dim=-1) @ self.prompts
        return scores


class NeedsMore(Clip):
    """Its method of that name takes something else; it is a classifier."""

    def encode_image(self, x: Tensor, prompts: Tensor | None = None) -> Tensor:
        assert prompts is not None
        return x

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.visual(x)
        return scores


class Tower(nn.Module):
    """A picture tower as OpenAI's CLIP has it."""

    def __init__(self) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = 32, 8
        self.net = trunk()

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.net(x)
        return embedded


@pytest.mark.parametrize("kind", [Clip, Tower])
def test_the_output_of_an_encoder_is_its_features(kind: type[nn.Module]) -> None:
    model = kind()
    output = model(X)
    found, notes = read(model)
    assert found.keys() == {"features"}
    assert torch.equal(found["features"], output[0] if isinstance(output, tuple) else output)
    assert "no head found" in notes
    found, _ = read(model, outputs="logits")
    assert "logits" in found


@pytest.mark.parametrize("kind", [ZeroShot, NeedsMore])
def test_a_classifier_with_an_encoders_method(kind: type[Clip]) -> None:
    model = kind()
    found, _ = read(model)
    torch.testing.assert_close(found["logits"], model(X))
    embedded = model.visual(X) if kind is ZeroShot else model.visual[:4](X)
    torch.testing.assert_close(found["features"], embedded)


class TakesText(Clip):
    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.encode_image(image) @ text


class Estimator:
    def __init__(self) -> None:
        self.module_ = trunk()


@pytest.mark.parametrize(
    ("model", "advice"),
    [(TakesText(), r"pass its picture tower, \.visual"), (Estimator(), r"pass its \.module_")],
)
def test_what_to_pass_instead(model: Any, advice: str) -> None:
    with pytest.raises(ModelSpecError, match=advice):
        wm.extract_features(model, X)


class Unhooked(nn.Linear):
    """Its call does not go through torch's, as that of Keras's layers."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Unhooked(3, 16), Unhooked(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.mean((2, 3))).relu())


def test_layers_that_hooks_do_not_see_are_no_proof_of_an_encoder() -> None:
    model = Functional()
    found, notes = read(model)
    assert found.keys() == {"logits"}
    assert torch.equal(found["logits"], model(X))
    assert "as Keras does" in notes


class Dense(nn.Module):
    """Answers for each pixel: classes, or one number."""

    def __init__(self, squeezed: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 8, 2, 2), nn.ConvTranspose2d(8, 2, 2, 2)
        self.squeezed = squeezed

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.decoder(self.encoder(x))
        return maps[:, 0] if self.squeezed else maps


@pytest.mark.parametrize("squeezed", [False, True])
def test_an_answer_for_each_pixel_is_no_features(squeezed: bool) -> None:
    model = Dense(squeezed).eval()
    with pytest.raises(LayerError, match="a dense prediction"):
        ActivationRecorder(model, ("logits", "features"), X)
    with ActivationRecorder(model, ("encoder",), X) as recorder:
        torch.testing.assert_close(recorder(X)["encoder"], model.encoder(X).mean((2, 3)))
    found, _ = read(model, outputs="features")
    assert found.keys() == {"features"}


class Cosine(nn.Module):
    """Cosines to prototypes, times the norm of the embedding: it is used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.dropped = trunk(), nn.Dropout()
        self.register_buffer("prototypes", functional.normalize(torch.randn(8, 5), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.trunk(x)
        cosines = functional.normalize(self.dropped(embedded), dim=-1) @ self.prototypes
        return cosines * embedded.norm(dim=-1, keepdim=True)


def test_features_that_go_two_ways() -> None:
    model = Cosine()
    found, _ = read(model)
    torch.testing.assert_close(found["features"], model.trunk(X))


@pytest.mark.filterwarnings("ignore")  # torch calls this quantisation deprecated
def test_quantised_layers_give_quantised_tensors() -> None:
    ao = torch.ao.quantization
    model = nn.Sequential(ao.QuantStub(), *trunk(), ao.DeQuantStub()).eval()
    model.qconfig = ao.get_default_qconfig(torch.backends.quantized.engine)  # type: ignore[assignment]
    prepared = ao.prepare(model)
    prepared(X)
    quantised = ao.convert(prepared)
    found, notes = read(quantised)
    assert notes == ""
    torch.testing.assert_close(found["logits"], quantised(X))
    torch.testing.assert_close(found["features"], quantised[:5](X).dequantize())


class Scores(nn.Module):
    """Calls its scores a last hidden state, as PP-LCNet of transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trunk()

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.net(x))


def test_scores_that_are_called_a_hidden_state() -> None:
    model = Scores().eval()
    found, _ = read(model)
    torch.testing.assert_close(found["logits"], model.net(X))
    torch.testing.assert_close(found["features"], model.net[:4](X))


class VisionTransformer(nn.Module):
    """Has the name of a class of torchvision's, and states its size as a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = (48, 48)
        self.net = trunk()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores


class Stages(Tower):
    """Swin's stages give their own resolution, as a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.input_resolution = (7, 7)  # type: ignore[assignment]


@pytest.mark.parametrize(("kind", "side"), [(VisionTransformer, 48), (Tower, 32), (Stages, 224)])
def test_sizes_that_models_state(kind: type[nn.Module], side: int) -> None:
    found = resolve_preprocessing("auto", kind())
    assert found.size == (side, side)
    assert found.assumed


def annotated(**more: Any) -> nn.Module:
    """Return what pretrainedmodels gives: settings on a network that may be torchvision's."""
    model = torchvision.models.resnet18(num_classes=3)
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.5, 0.25], "input_size": [3, 96, 96], **more}
    for name, value in settings.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize("white", [1, 255])
def test_settings_that_a_network_carries(white: int) -> None:
    mean, std = [0.5 * white, 0.4 * white, 0.3 * white], [0.2 * white, 0.5 * white, 0.25 * white]
    model = annotated(input_range=[0, white], mean=mean, std=std)
    found = resolve_preprocessing("auto", model)
    assert (found.size, found.resize) == ((96, 96), 109)
    pixels = torch.rand(2, 3, 96, 96)
    centre, scale = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    torch.testing.assert_close(found.to_input(pixels), (pixels * white - centre) / scale)
    assert found.assumed


def test_settings_of_blue_first_are_not_half_read() -> None:
    found = resolve_preprocessing("auto", annotated(input_space="BGR"))
    assert found.size == (224, 224)
    assert found.assumed
