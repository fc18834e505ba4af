"""A probe of 50,000 images, four scenarios and 2,048 units: memory, and seconds for the scores.

The images are noise of 32 pixels and the model is one convolution, so that activations and scores
are all there is. Peak memory is that of the process beyond what it took before the probe.

``python benchmarks/large.py [--images 50000]``
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from common import line, print_machine
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.probing import measuring


class Noise(torch.utils.data.Dataset):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2048, 8, stride=8)
        self.fc = nn.Linear(2048, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stem(x).relu().mean((2, 3)))


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    images = parser.parse_args().images
    print_machine()
    model = Wide().eval()
    small = wm.Preprocessing(size=(32, 32))
    wm.probe(model, Noise(64), preprocess=small)  # whatever is loaded on first use
    scoring = 0.0
    score = measuring.score

    def timed(*arguments: object) -> object:
        nonlocal scoring
        start = time.perf_counter()
        result = score(*arguments)
        scoring += time.perf_counter() - start
        return result

    measuring.score = timed
    before, start = peak_gigabytes(), time.perf_counter()
    report = wm.probe(model, Noise(images), layers=("features",), preprocess=small)
    wall, grown = time.perf_counter() - start, peak_gigabytes() - before
    units = len(report["features", "chinese"].names)
    print(f"{images} images, {len(report.scenarios)} scenarios, {units} units: {wall:.0f} s in all")
    line("seconds for the scores", f"{scoring:.0f}", "<= 120", scoring <= 120)
    line("peak memory beyond the model, GB", f"{grown:.2f}", "<= 4", grown <= 4)


if __name__ == "__main__":
    main()
