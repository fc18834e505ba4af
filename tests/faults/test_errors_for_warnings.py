"""``pytest -W error``: what a gate repairs by itself fails one run at most, and is named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

TEST = """
import torch
from torch import nn
import pytest_watermark_guard as wm

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.stem(x).relu().mean((2, 3)))

def test_probe():
    preprocess = wm.Preprocessing(size=(32, 32))
    assert wm.probe(Net(), "photos", "latin", ("logits",), preprocess, progress=False).n_images == 6
"""


@pytest.fixture
def project(pytester, monkeypatch):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(pytester.path / "cache"))
    pytester.makepyfile(TEST)
    photos = pytester.path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(6):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    return pytester


def outcome(project, *options):
    return project.runpytest("-W", "error", "-p", "no:randomly", *options)


@pytest.mark.parametrize("kinds", [("activations",), ("layers", "scores", "looks", "images")])
def test_damaged_entries(project, kinds):
    outcome(project).assert_outcomes(passed=1)
    damaged = 0
    for kind in kinds:
        for path in (project.path / "cache" / "cache" / kind).iterdir():
            path.write_bytes(b"damaged")
            damaged += 1
    assert damaged >= 2
    result = outcome(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*UserWarning: *cache*guard* computed again"])
    outcome(project).assert_outcomes(passed=1)


def test_the_built_in_images_damaged(project):
    project.makepyfile(TEST.replace('"photos"', "None").replace("== 6", "> 9"))
    outcome(project).assert_outcomes(passed=1)
    (path,) = (project.path / "cache").glob("builtin*.npy")
    path.write_bytes(path.read_bytes()[:1000])
    result = outcome(project)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{path.name} is damaged; the images are painted again*"])
    outcome(project).assert_outcomes(passed=1)


def test_pictures_that_pillow_warns_of(project):
    rng = np.random.default_rng(1)
    palette = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    palette.convert("P").save(project.path / "photos" / "0.png", transparency=bytes(range(256)))
    Image.new("L", (9500, 9500), 99).save(project.path / "photos" / "1.png")
    result = outcome(project)
    result.assert_outcomes(passed=1)
    assert "warning" not in result.stdout.str().lower()
