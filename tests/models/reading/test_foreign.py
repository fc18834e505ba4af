"""What someone's model raises says what it was fed, and what can be changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import LayerError, ModelError

IMAGES = torch.rand(6, 3, 16, 16)
HOW = wm.Preprocessing(size=(16, 16))


class Raises(nn.Module):
    """Raises in one of its forward passes."""

    def __init__(self, error: Exception, at: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.error, self.at, self.runs = error, at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.runs >= self.at:
            raise self.error
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("kind", [AssertionError, KeyError, TypeError, RuntimeError])
def test_it_is_no_failed_gate_and_says_what_was_fed(kind: type[Exception]) -> None:
    error = kind("no channel dimension")
    with pytest.raises(ModelError) as caught:
        wm.assert_not_watermark_sensitive(Raises(error), IMAGES, "latin", preprocess=HOW)
    assert not isinstance(caught.value, AssertionError)
    assert caught.value.__cause__ is error
    message = str(caught.value)
    first, second = message.splitlines()
    assert first.startswith(f"Raises raised {kind.__name__}: ")
    assert "no channel dimension" in first
    assert second.startswith(
        "while finding its layers, on a float32 batch [4, 3, 16, 16] on cpu, values from "
    )
    for argument in ("preprocess=", "device=", "precision="):
        assert argument in message


def test_it_says_which_images_were_probed() -> None:
    model = Raises(ValueError("too dark"), at=4)
    with pytest.raises(ModelError, match=r"too dark\nwhile probing images '\d' to '\d'"):
        wm.probe(model, IMAGES, "latin", preprocess=HOW, cache=False)


def test_features_that_cannot_be_extracted() -> None:
    with pytest.raises(ModelError, match=r"while finding and reading its features.*\[6, 3, 16, 16"):
        wm.extract_features(Raises(AssertionError()), IMAGES)


def test_errors_of_our_own_and_of_memory_stay_as_they_are() -> None:
    with pytest.raises(LayerError):
        wm.probe(Raises(ValueError(), at=9), IMAGES, "latin", "nosuch", HOW, cache=False)
    for error in (torch.cuda.OutOfMemoryError("out of memory"), MemoryError()):
        with pytest.raises(type(error)):
            wm.extract_features(Raises(error), IMAGES)
