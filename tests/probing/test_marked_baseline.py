"""Baseline images that look marked already, by the model's own detectors."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.images.builtin import builtin_images

SIDE = 96
N = 60
INK = wm.Scenario("ink", "AB", length=4, size=40, color="#00ff00")
SEES = wm.Preprocessing(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)
LOOK_MARKED = "the baseline images look marked already (ink), so that new marks change little"


class Green(nn.Module):
    """Features that rise with the greenest spot, in three ways, and one that does not."""

    preprocessing = SEES

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0, 0, 0.2], [0, 0, 1, 0.1]]))
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        green = (x[:, 1] - x[:, ::2].amax(1)).amax((1, 2))
        return self.fc(torch.stack([green, green**2, -green, x.mean((1, 2, 3))], 1))


def photos(marked: float = 0.0) -> np.ndarray:
    """Images with noise of their own, of which the last ones have a green stroke."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 140, (N, SIDE, SIDE, 3), dtype=np.uint8)
    for image in pixels[N - round(marked * N) :]:
        top, left = rng.integers(0, SIDE - 40, 2)
        image[top : top + 5, left : left + 40] = 0, 255, 0
    return pixels


def probe(images, model=None, **arguments):
    return wm.probe(model or Green(), images, (INK,), **{"cache": False, **arguments})


@pytest.mark.parametrize("layers", [("logits", "features"), ("features",)])
def test_all_images_are_marked(layers):
    report = probe(photos(1.0), layers=layers)
    assert max(scores.differentiability.max() for scores in report) < 0.8
    assert report.notes[0].startswith(LOOK_MARKED)
    assert "units that tell ink marks on the built-in images" in report.notes[0]


def test_nothing_is_said_of_clean_images():
    assert probe(photos()).notes == ()


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_some_images_are_marked(share):
    first, *more = probe(photos(share)).notes
    assert not more
    number = round(share * N)
    found = re.fullmatch(r"at least (\d+) of 60 baseline images look marked .*ink.*", first)
    assert number // 2 <= int(found[1]) <= number
    named = [int(word) for word in first.split("look at ")[1].split("'")[1::2][:3]]
    assert len(set(named)) == 3
    assert min(named) >= N - number


class Blind(Green):
    """Sees the top left corner alone."""

    def forward(self, x):
        self.seen += len(x)
        return self.fc(x[:, :, :2, :2].mean((2, 3))[:, [0, 1, 2, 0]])


def test_nothing_is_said_where_no_unit_tells_marks():
    assert probe(photos(1.0), Blind()).notes == ()


def test_nothing_is_said_of_text_that_is_none_of_the_marks():
    pixels = photos()
    pixels[:, 20:25, 20:60] = 0, 0, 255
    assert probe(pixels).notes == ()


def test_built_in_images_are_not_compared_with_themselves():
    model = Green()
    report = wm.probe(model, None, (INK,), max_images=30, cache=False, batch_size=10)
    assert report.notes == ()
    assert model.seen < 30 * 2 + 40


def test_its_price(monkeypatch, tmp_path):
    """Forty images are enough, and nothing is computed where units react, or the second time."""

    def seen(model):
        report = probe(photos(), model, cache=True, precision="float32", batch_size=20)
        assert report.notes == ()
        return model.seen

    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    few = 50  # the first answers, and to find the layers
    assert 2 * N <= seen(Green()) <= 2 * N + few
    assert 2 * (N + 40) <= seen(Blind()) <= 2 * (N + 40) + few
    assert seen(Blind()) < few


def test_a_model_that_fails_on_built_in_images_does_not_fail_the_probe():
    class Picky(Blind):
        def forward(self, x):
            if x.mean() > 0.5:  # as of no image of this test, and of some built-in ones
                raise RuntimeError("too bright")
            return super().forward(x)

    report = probe(photos(), Picky(), batch_size=1, precision="float32")
    assert report.notes[0].startswith(
        "whether the baseline images look marked already could not be told: Picky raised "
        "RuntimeError: too bright"
    )


def test_images_with_marks_printed_by_the_product(tmp_path):
    for index, pixels in enumerate(builtin_images()[40:65]):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    wm.write_marked_folder(tmp_path, tmp_path / "marked", INK)
    assert probe(tmp_path / "marked").notes[0].startswith(LOOK_MARKED)


def test_photos_with_the_authors_marks(real_data):
    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(load_file(real_data / "models" / "mobilenet_v2.safetensors"))
    sample = real_data / "data" / "imagenet-sample"
    arguments = {"max_images": 40, "cache": False, "precision": "float32", "progress": False}
    for folder, said in ((sample / "chinese", True), (sample / "baseline", False)):
        notes = wm.probe(model, folder, ("chinese",), ("features",), **arguments).notes
        assert any("look marked already (chinese)" in note for note in notes) == said
