"""What is no model, or cannot be run as it is, says what to pass instead."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.near_misses import check_module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Pipeline:
    """Like those of transformers."""

    def __init__(self) -> None:
        self.model = Net()
        self.image_processor = object()


class Learner:
    """Like fastai's."""

    def __init__(self) -> None:
        self.model = Net()

    def __call__(self, name: str) -> None: ...


class LightningModule(nn.Module):
    """Like Lightning's, whose forward is to be overridden."""

    def forward(self, *args: Any) -> Any:
        return super().forward(*args)


class Training(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.ModuleList()
        self.net = Net()


class TwoTowers(Net):
    """Like transformers' CLIPModel."""

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(model_type="clip")
        self.vision_model, self.text_model = Net(), Net()


def yolo() -> nn.Module:
    """Return what looks like ultralytics' wrapper."""
    kind = type("YOLO", (Net,), {"__module__": "ultralytics.engine.model"})
    model: nn.Module = kind()
    return model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


def exported() -> Any:
    return torch.export.export(Net(), (torch.rand(2, 3, 8, 8),))


NEAR_MISSES: dict[Callable[[], Any], str] = {
    Pipeline: r"Pipeline: pass its \.model, and its \.image_processor as preprocess=",
    Learner: r"Learner: pass its \.model",
    exported: r"ExportedProgram: pass its \.module\(\).*\.pt2",
    Training: r"Training has no forward: pass what it runs, such as its \.net",
    yolo: r"YOLO wraps the network: pass its \.model",
    TwoTowers: r"takes text beside pictures: pass its picture tower, \.vision_model",
    lambda: Net().state_dict(): r"weights without an architecture.*load_state_dict.*\?weights=FILE",
    on_meta: r"Net is on the meta device.*to_empty",
    lambda: Path("w.pth"): r"its architecture, such as 'torchvision:resnet18\?weights=w\.pth'",
    lambda: Net: "the class Net: pass an instance",
    lambda: wm.load_model("torchvision:squeezenet1_1@random"): r"LoadedModel: pass its \.module",
    lambda: 3: "a model spec or a function from a batch to logits, got int",
}


@pytest.mark.parametrize("make", NEAR_MISSES)
def test_near_misses_say_what_to_pass(make: Callable[[], Any]) -> None:
    model = make()
    with pytest.raises(ModelSpecError, match=NEAR_MISSES[make]):
        wm.probe(model, torch.rand(2, 3, 8, 8), "latin", cache=False)
    with pytest.raises(ModelSpecError, match=NEAR_MISSES[make]):
        wm.extract_features(model, torch.rand(2, 3, 8, 8))


def test_features_of_a_spec() -> None:
    with pytest.raises(ModelSpecError, match=r"pass load_model\('timm:resnet10t'\)\.module"):
        wm.extract_features("timm:resnet10t", torch.rand(2, 3, 8, 8))  # type: ignore[arg-type]


def set_on_the_instance() -> nn.Module:
    net, model = Net(), nn.Module()
    model.net = net
    model.forward = net.forward  # type: ignore[method-assign]
    return model


class Called(nn.Module):
    """Overrides ``__call__``, as some frameworks on torch do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = self.net(x)
        return result


class WithTowers(TwoTowers):
    """Has towers, and is no model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        del self.config


@pytest.mark.parametrize("make", [set_on_the_instance, Called, WithTowers])
def test_unusual_models_are_models(make: Callable[[], nn.Module]) -> None:
    model = make()
    assert check_module(model) is model
