"""Marks at a fixed place, and the ready one of ImageNet-W."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ScenarioError
from pytest_watermark_guard.settings import Settings
from pytest_watermark_guard.watermarks.draw import draw_watermark
from pytest_watermark_guard.watermarks.scenarios import FONTS, POSITIONS, resolve_scenarios
from pytest_watermark_guard.watermarks.text import Renderer

(IMAGENET_W,) = resolve_scenarios(["imagenet_w"])


def marked(scenario, identity="a", height=224, width=224):
    """Return the ink's place in the whole image, and the string."""
    draw = draw_watermark(scenario, 17, identity)
    return Renderer(scenario, height, width).render(draw), draw.text


@pytest.mark.parametrize("height", [200, 301])
@pytest.mark.parametrize("name", POSITIONS)
def test_named_places_touch_the_borders_or_are_halfway(name, height):
    mark, _ = marked(wm.Scenario("s", "ABC", position=name), height=height, width=240)
    rows, columns = mark.alpha.shape
    for words, start, room in (
        (("top", "bottom"), mark.top, height - rows),
        (("left", "right"), mark.left, 240 - columns),
    ):
        first, last = (any(part == word for part in name.split("-")) for word in words)
        expected = 0 if first else room if last else room / 2
        assert abs(start - expected) <= (0.5 if expected == room / 2 else 0)


def test_shares_of_the_room():
    mark, _ = marked(wm.Scenario("s", "ABC", position=(0.25, 1)))
    rows, columns = mark.alpha.shape
    assert abs(mark.left - 0.25 * (224 - columns)) <= 1
    assert mark.top == 224 - rows


def test_the_place_leaves_the_string_alone():
    """So that positions are compared by the same strings."""
    for identity in map(str, range(20)):
        texts = {
            marked(wm.Scenario("s", "ABC", position=position), identity)[1]
            for position in ("random", "top", (0.1, 0.9))
        }
        assert len(texts) == 1


@pytest.mark.parametrize(
    "position", ["middle", "", (0.5,), (0.5, 1.1), (-0.1, 0), ("0", "1"), None, 0.5]
)
def test_what_is_no_place(position):
    with pytest.raises(ScenarioError, match=r"'s': position must be 'random', one of top-left, "):
        wm.Scenario("s", "A", position=position)


def test_activations_of_one_place_are_never_those_of_another(tmp_path, monkeypatch):
    """Both are kept; the scenarios differ by nothing else."""
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))

    class Quadrants(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.adaptive_max_pool2d(x.mean(1, keepdim=True), 2).flatten(1)

    photos = np.random.default_rng(0).integers(0, 90, (12, 64, 64, 3), dtype=np.uint8)
    for _ in range(2):
        for unit, position in ((0, "top-left"), (3, "bottom-right")):
            scenario = wm.Scenario("s", "A", length=1, size=40, position=position)
            report = wm.probe(
                Quadrants(), photos, (scenario,), ("features",), wm.Preprocessing(size=(64, 64))
            )
            assert report["features", "s"].differentiability.tolist() == [
                1.0 if index == unit else 0.5 for index in range(4)
            ]


def test_imagenet_w_is_ready_but_no_default():
    assert "imagenet_w" not in wm.SCENARIOS
    assert "imagenet_w" not in Settings().scenarios
    assert IMAGENET_W.name == "imagenet_w"


def test_imagenet_w_has_the_pixels_of_its_authors():
    """As imagenet_w/watermark_transform.py prints it: Pillow's text at (1 %, 40 %), composited."""
    overlay = Image.new("RGBA", (224, 224), (255, 255, 255, 0))
    font = ImageFont.truetype(str(FONTS["song-light"]), 36)
    place = (0.01 * 224, 0.4 * 224)
    ImageDraw.Draw(overlay).text(place, "捷径捷径捷径", fill=(255, 255, 255, 128), font=font)
    theirs = np.asarray(overlay)[..., 3].astype(int)

    mark, text = marked(IMAGENET_W)
    ours = np.zeros((224, 224), int)
    rows, columns = mark.alpha.shape
    ours[mark.top : mark.top + rows, mark.left : mark.left + columns] = mark.alpha
    assert text == "捷径捷径捷径"
    assert ours.max() == 128
    assert np.abs(ours - theirs).max() <= 1  # 0.5 · 255 is no integer
    assert abs(mark.top + rows / 2 - 112) < 8  # the image's centre, about
    assert abs(mark.left + columns / 2 - 112) < 8


def test_imagenet_w_is_the_same_on_every_image_and_seed():
    draws = {draw_watermark(IMAGENET_W, seed, str(i)) for seed in (1, 2) for i in range(5)}
    assert len(draws) == 1
