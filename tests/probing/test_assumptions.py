"""What a gate that passes stands on is a warning, until somebody says the thing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import AssumptionWarning, WatermarkSensitivityError

PHOTOS = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)


class Corner(nn.Module):
    """Reads a corner, which marks seldom cover."""

    preprocessing = wm.Preprocessing(size=(32, 32))

    def __init__(self, classes=3, norm=None):
        super().__init__()
        self.norm = norm or nn.Identity()
        self.head = nn.Linear(3, classes) if classes else nn.Identity()

    def forward(self, x):
        return self.head(self.norm(x)[:, :, :2, :2].mean((2, 3)))


def told(model, **arguments):
    """Return what a gate that passes warns of."""
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wm.assert_not_watermark_sensitive(model, PHOTOS, "latin", cache=False, **arguments)
    return [str(w.message) for w in caught if w.category is AssumptionWarning]


def test_nothing_is_assumed_of_a_model_that_says_all():
    assert told(Corner()) == []


def test_preprocessing():
    model = Corner()
    model.preprocessing = None
    (said,) = told(model)
    assert said.startswith("Corner: preprocessing is assumed: ImageNet, 224 px; pass preprocess=")
    assert told(model, preprocess="imagenet") == []


def test_class_names():
    (said,) = told(Corner(classes=1000), layers="logits")
    assert said == "Corner: class names are assumed to be ImageNet's: the model has 1000 logits"
    names = [f"class {index}" for index in range(1000)]
    assert told(Corner(classes=1000), layers="logits", class_names=names) == []


def test_layers():
    (said,) = told(Corner(classes=0))
    assert "no head found" in said
    assert told(Corner(classes=0), layers="features", outputs="features") == []


def test_untrained_weights():
    model = Corner(norm=nn.BatchNorm2d(3))
    (said,) = told(model)
    assert said.startswith(
        "Corner: the weights look untouched: no batch norm has ever seen a batch"
    )
    model.train()(torch.rand(8, 3, 32, 32))
    assert told(model.eval()) == []


def test_a_failing_gate_tells_it_in_its_message():
    model = Corner()
    model.preprocessing = None
    with pytest.raises(WatermarkSensitivityError, match="preprocessing is assumed"):
        wm.assert_not_watermark_sensitive(
            model, PHOTOS, "latin", cache=False, threshold=0.501, inconclusive="fail"
        )
