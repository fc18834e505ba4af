"""Many gates in one process: memory, file descriptors and threads stay where they are.

``python benchmarks/soak.py [--gates 500]``; on Linux, where ``/proc`` tells of them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
from common import line, print_machine
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import WatermarkGuardError

IMAGES = 24
WARM = 100  # gates until everything that is kept on purpose is there
MOST_MIB = 16  # that memory may move by: allocators keep some


class Net(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 10)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


def state() -> tuple[float, int, int]:
    """Return resident memory in MiB, descriptors and threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - without one of its own
    return pages * os.sysconf("SC_PAGESIZE") / 2**20, descriptors, threading.active_count()


def gate(number: int, photos: Path) -> None:
    """Run one gate of one of many kinds; whether it passes is of no account."""
    # Some models for the first time, some again; from files and from memory.
    model = Net(number % 7 if number % 2 else number)
    images = (
        photos
        if number % 3
        else np.random.default_rng(number % 5).integers(0, 256, (IMAGES, 64, 64, 3), dtype=np.uint8)
    )
    with contextlib.suppress(AssertionError, WatermarkGuardError):
        wm.assert_not_watermark_sensitive(
            model,
            images=images,
            scenarios=("latin",) if number % 4 else ("latin", "chinese"),
            preprocess=wm.Preprocessing(size=(64, 64)),
            progress=False,
            cache=bool(number % 5),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gates", type=int, default=500)
    gates = parser.parse_args().gates
    if not Path("/proc/self/statm").exists():
        sys.exit("needs Linux")
    print_machine()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WATERMARK_GUARD_CACHE"] = str(Path(folder, "cache"))
        os.environ["WATERMARK_GUARD_CACHE_BYTES"] = str(2**22)
        photos = Path(folder, "photos")
        photos.mkdir()
        rng = np.random.default_rng(0)
        for index in range(IMAGES):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{index:02}.png")
        states = []
        for number in range(gates):
            gate(number, photos)
            states.append(state())
            if number % 50 == 49:
                memory, descriptors, threads = states[-1]
                print(f"{number + 1:>5} gates: {memory:8.1f} MiB {descriptors:>4} fds {threads:>3}")
        left = list(Path(folder).rglob("*.tmp"))
    warm, last = np.array(states[min(WARM, gates // 2) :]), states[-1]
    first, late = np.array_split(warm, 2)
    moved = float(np.median(late[:, 0]) - np.median(first[:, 0]))
    line(f"memory, second half against the first, MiB (of {last[0]:.0f})", f"{moved:+.1f}",
         f"<= {MOST_MIB}", moved <= MOST_MIB)  # fmt: skip
    for column, what in ((1, "file descriptors"), (2, "threads")):
        seen = sorted({int(number) for number in warm[:, column]})
        line(f"{what}, fewest and most", f"{seen[0]} {seen[-1]}", "equal", len(seen) == 1)
    line("temporary files left", len(left), "0", not left)


if __name__ == "__main__":
    main()
