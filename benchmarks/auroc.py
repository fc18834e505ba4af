"""AUROC of many units against the loops one would write with torchmetrics and scikit-learn.

All three score the same 2,048 units of 998 + 998 float32 scores in [0, 1], in turns; the medians
are compared. Ours takes them as [images, units], the others as one contiguous row for each unit,
which spares them the transposition that ours pays for. `--large` also times `paired_auroc` on
50,000 images × 2,048 units × 4 scenarios: four calls on whole arrays, of which the baseline and one
scenario are held at a time (820 MB); drawing the scores is not counted.

``python benchmarks/auroc.py [--rounds 5] [--large]``
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import numpy.typing as npt
import torch
from common import line, print_machine
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_auroc

from pytest_watermark_guard.statistics.auroc import auroc, paired_auroc

UNITS = 2048
SCENARIOS = 4
Scores = npt.NDArray[np.float32]


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def against_loops(rounds: int, images: int = 998) -> None:
    rng = np.random.default_rng(0)
    baseline, marked = rng.random((2, images, UNITS), dtype=np.float32)
    marked **= 0.8
    rows = np.ascontiguousarray(np.concatenate([baseline, marked]).T)
    truth = np.repeat([0, 1], images)
    tensors, truth_tensor = torch.from_numpy(rows), torch.from_numpy(truth)

    def scikit_learn() -> list[float]:
        return [roc_auc_score(truth, row) for row in rows]

    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: auroc(baseline, marked),
        "torchmetrics": lambda: [binary_auroc(row, truth_tensor) for row in tensors],
        "scikit-learn": scikit_learn,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds):
        for name, function in ways.items():
            taken[name].append(seconds(function))
        latest = ", ".join(f"{name} {times[-1]:.3f} s" for name, times in taken.items())
        print(f"round {round_ + 1}: {latest}", flush=True)
    own, torchmetrics, sklearn = (median(times) for times in taken.values())
    off = float(np.abs(auroc(baseline, marked) - scikit_learn()).max())
    for name, theirs, wanted in (("torchmetrics", torchmetrics, 5), ("scikit-learn", sklearn, 20)):
        ratio = theirs / own
        line(f"AUROC: {name} loop / ours, time", f"{ratio:.1f}", f">= {wanted}", ratio >= wanted)
    line("AUROC: largest difference to scikit-learn", f"{off:.1e}", "<= 1e-12", off <= 1e-12)


def fill(scores: Scores, rng: np.random.Generator, baseline: Scores | None = None) -> None:
    """Draw scores block by block, half of a marked score being the baseline's: no whole copies."""
    for first in range(0, len(scores), 1000):
        block = scores[first : first + 1000]
        rng.standard_normal(out=block, dtype=np.float32)
        if baseline is not None:
            block += baseline[first : first + 1000]


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def large(images: int = 50_000) -> None:
    rng = np.random.default_rng(1)
    baseline, marked = (np.empty((images, UNITS), dtype=np.float32) for _ in range(2))
    fill(baseline, rng)
    taken, before = 0.0, 0.0
    for scenario in range(SCENARIOS):
        fill(marked, rng, baseline)
        before = before or peak_megabytes()
        taken += seconds(lambda: paired_auroc(baseline, marked))
        print(f"scenario {scenario + 1}: {taken:.1f} s so far", flush=True)
    grown = peak_megabytes() - before
    what = f"paired AUROC, {images:,} x {UNITS:,} x {SCENARIOS}"
    line(f"{what}: seconds", f"{taken:.1f}", "<= 120", taken <= 120)
    # More than this would mean a copy of one of the arrays of scores.
    line(f"{what}: memory, MB", f"{grown:.0f}", "<= 400", grown <= 400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="also 50,000 images, some minutes")
    arguments = parser.parse_args()
    print_machine()
    against_loops(arguments.rounds)
    if arguments.large:
        large()


if __name__ == "__main__":
    main()
