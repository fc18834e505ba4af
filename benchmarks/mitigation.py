"""Masking and erasure on real features: what heads lose, what they gain, and what it takes.

MobileNet V2 with real weights, and Caltech-101 split in two: heads for the paper's ten shares of
masked features and one after erasure, scored with marks that no training image had. Then the same
heads are timed: all against one, and the whole sweep against one pass of the backbone over the same
images.

``WATERMARK_GUARD_DATA=... python benchmarks/mitigation.py [--figure sweep.png]``
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from common import line, mobilenet_spec, print_machine, real_data

import pytest_watermark_guard as wm
from pytest_watermark_guard.mitigation.sweep import ALPHAS
from pytest_watermark_guard.models.linear_probe import HeadTrainer
from pytest_watermark_guard.probing.recorded import recorded

VALIDATION = 0.2  # of each class
ROUNDS = 3
EPOCHS = 15  # of the paper's procedure, with the backbone in each


def split(photos: Path, scratch: Path) -> tuple[Path, Path]:
    """Link a seeded part of each class's photos into one folder, and the rest into another."""
    rng = np.random.default_rng(0)
    parts = scratch / "train", scratch / "validation"
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        names = sorted(path.name for path in folder.iterdir())
        held_out = set(rng.permutation(names)[: max(1, round(VALIDATION * len(names)))].tolist())
        for name in names:
            target = parts[name in held_out] / folder.name
            target.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(folder / name)
    return parts


def seconds(function: object) -> float:
    start = time.perf_counter()
    function()  # type: ignore[operator]
    return time.perf_counter() - start


def heads_cost(model: str, train: Path) -> tuple[float, float]:
    """Return the seconds for one head, penalty included, and for all of them."""
    with recorded(model, train, (), ("features",), progress=False) as found:
        features = np.array(found.recording["", "features"].columns())
        folders = [identity.split("/")[0] for identity in found.identities]
    classes, labels = np.unique(folders, return_inverse=True)
    order = list(range(features.shape[1]))
    counts = [int(np.ceil(alpha * len(order))) for alpha in ALPHAS]
    one, all_ = [], []
    for _ in range(ROUNDS):
        for found_in, wanted in ((one, [0]), (all_, counts)):
            found_in.append(
                seconds(
                    lambda wanted=wanted: list(
                        HeadTrainer(features, labels, len(classes), 0).nested(order, wanted)
                    )
                )
            )
    return median(one), median(all_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="where to draw the sweep")
    arguments = parser.parse_args()
    data = real_data()
    model = mobilenet_spec(data)
    print_machine()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["WATERMARK_GUARD_CACHE"] = str(Path(scratch, "cache"))
        train, validation = split(data / "data" / "caltech-101", Path(scratch))
        start = time.perf_counter()
        sweep = wm.sweep(model, train, validation, name="mobilenet_v2")
        whole = time.perf_counter() - start
        print(sweep.table(width=100))
        if arguments.figure:
            sweep.plot(arguments.figure)
        one, all_ = heads_cost(model, train)
        # The streams of the sweep: 2 of the training images, 9 of the validation images.
        passes = sum(
            seconds(lambda part=part: wm.probe(model, *part, cache=False, progress=False))
            for part in (
                (train, ("chinese",), ("features",)),
                (validation, ("chinese", "latin", "hindi", "arabic_numerals"), ("features",)),
            )
        )
        # That probe has five of the validation's nine streams.
        share = (2 * sweep.n_train + 9 * sweep.n_validation) / (
            2 * sweep.n_train + 5 * sweep.n_validation
        )
        one_pass = passes * share

    first = sweep.heads[0]
    tenth = next(head for head in sweep.heads if head.alpha == 0.1)
    up_to = [head for head in sweep.heads if head.alpha <= 0.1]
    lost = max(first.accuracy - head.accuracy for head in up_to)
    line("accuracy lost at most, alpha up to 0.1", f"{lost:+.4f}", "<= 0.005", lost <= 0.005)
    d = first.d("chinese"), tenth.d("chinese")
    line("largest d of the head, alpha 0", f"{d[0]:.3f}", "~0.75", abs(d[0] - 0.75) < 0.03)
    line("largest d of the head, alpha 0.1", f"{d[1]:.3f}", "< 0.60", d[1] < 0.6)
    if sweep.erased is not None:
        erased, change = sweep.erased.d("chinese"), sweep.erased.change
        line("largest d of the head, erasure", f"{erased:.3f}", "< 0.55", erased < 0.55)
        line("accuracy after erasure against none", f"{change:+.4f}", ">= -0.005", change >= -0.005)
    line("ten heads / one head, seconds", f"{all_ / one:.2f}", "<= 1.5", all_ <= 1.5 * one)
    ratio = whole / (one_pass + all_)
    line("sweep / (one pass of the backbone + heads)", f"{ratio:.2f}", "<= 1.2", ratio <= 1.2)
    # Of the training images alone, as each epoch has.
    epoch = one_pass * sweep.n_train / (2 * sweep.n_train + 9 * sweep.n_validation)
    theirs = epoch * EPOCHS * len(ALPHAS)
    print(
        f"backbone in every one of {EPOCHS} epochs for {len(ALPHAS)} alphas: {theirs:.0f} s, "
        f"{theirs / whole:.0f} times the sweep's {whole:.0f} s"
    )


if __name__ == "__main__":
    main()
