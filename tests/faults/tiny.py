"""A model and photos so small that a probe of them takes some hundredths of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm

IMAGES = 8
PREPROCESS = wm.Preprocessing(size=(16, 16))
BARS = wm.Scenario("bars", "|", length=3)


class Net(nn.Module):
    """Does something before its forward passes, if asked to."""

    def __init__(self, before: Any = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, 3, 3), nn.Linear(3, 2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self._before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._before is not None:
            self._before()
        return self.head(self.stem(x).relu().mean((2, 3)))


def photos(folder: Path) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 16, 16, 3), dtype=np.uint8)
    for index, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{index}.png")
    return folder


def probe(folder: Path, before: Any = None) -> wm.ProbeReport:
    return wm.probe(
        Net(before),
        folder,
        [BARS],
        layers=("logits",),
        preprocess=PREPROCESS,
        precision="float32",
        batch_size=4,
        progress=False,
    )
