"""A model that returns no rows, too few, too many, or nothing: one error that names the shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import LayerError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
CHANGES = {
    "nothing": lambda logits: None,
    "no row": lambda logits: logits[:0],
    "one row": lambda logits: logits[:1],
    "too few rows": lambda logits: logits[:-1],
    "too many rows": lambda logits: torch.cat([logits, logits]),
    "no class": lambda logits: logits[:, :0],
    "a number": lambda logits: logits.sum(),
    "an empty tensor": lambda logits: torch.empty(0),
    "maps of no image": lambda logits: torch.empty(0, 4, 3, 3),
    "an empty tuple": lambda logits: (),
    "an empty dictionary": lambda logits: {},
    "a tuple of nothing": lambda logits: (None,),
    "classes": lambda logits: logits.argmax(1),
}


class Net(nn.Module):
    def __init__(self, change, right_calls=0):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.change, self.calls_left = change, right_calls

    def forward(self, x):
        logits = self.head(self.stem(x).relu().mean((2, 3)))
        self.calls_left -= 1
        return logits if self.calls_left >= 0 else self.change(logits)


def of_kind(kind, model):
    if kind == "module":
        return model
    return lambda batch: model(torch.as_tensor(batch)).detach()


def probe(model):
    preprocess = wm.Preprocessing(size=(32, 32))
    arguments = {"preprocess": preprocess, "batch_size": 4, "cache": False, "progress": False}
    return wm.probe(model, IMAGES, "latin", layers=("logits",), **arguments)


@pytest.mark.parametrize("right_calls", [0, 6])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_no_row_for_every_image_is_one_clear_error(change, right_calls):
    message = r"^the model returned .+, where logits of shape \[B, C\] were expected for B = \d+ im"
    with pytest.raises(LayerError, match=message) as caught:
        probe(Net(CHANGES[change], right_calls))
    if change in ("no row", "one row", "too few rows", "too many rows", "no class"):
        assert "tensor of shape [" in str(caught.value)


@pytest.mark.parametrize("right_calls", [0, 6])
@pytest.mark.parametrize("change", [c for c in CHANGES if "empty" not in c and "nothing" not in c])
def test_so_it_is_of_a_function(change, right_calls):
    with pytest.raises(LayerError, match="where logits of shape"):
        probe(of_kind("function", Net(CHANGES[change], right_calls)))


@pytest.mark.parametrize("kind", ["module", "function"])
def test_another_number_of_classes_in_a_later_batch_is_one_too(kind):
    with pytest.raises(LayerError, match=r"'logits' gave \[4, 2\] for 4 images, where \[4, 3\]"):
        probe(of_kind(kind, Net(lambda logits: logits[:, :2], right_calls=6)))


def test_the_same_model_without_the_change_is_probed():
    assert probe(Net(lambda logits: logits)).n_images == len(IMAGES)
