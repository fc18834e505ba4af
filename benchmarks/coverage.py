"""How often the intervals hold the true AUROC, on simulated images.

An image's two scores are normal with correlation 0, 0.5 or 0.9, as they are or rounded to whole
standard deviations (ties everywhere). Each cell of the table is the share of simulated units whose
95 % logit interval holds the true A; where A = 0.5, the rest are false positives. For some cells
the bootstrap over images follows, on fewer units.

``python benchmarks/coverage.py [--units 4000] [--bootstrap-units 500]``
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
from common import line
from scipy.stats import norm

from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.statistics.intervals import bootstrap_interval, logit_interval

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
AREAS = (0.5, 0.7, 0.85, 0.95)
CORRELATIONS = (0.0, 0.5, 0.9)
IMAGES = (64, 256, 998)


def simulate(
    n: int, units: int, area: float, correlation: float, tied: bool
) -> tuple[Floats, Floats, float]:
    """Draw baseline and marked scores [n, units], and return them with the true A."""
    rng = np.random.default_rng([n, int(100 * area), int(100 * correlation), tied])
    shift = np.sqrt(2) * norm.ppf(area)
    shared = np.sqrt(correlation) * rng.standard_normal((n, units))
    baseline, marked = (
        shared + np.sqrt(1 - correlation) * rng.standard_normal((n, units)) for _ in range(2)
    )
    marked += shift
    if not tied:
        return baseline, marked, area
    return np.round(baseline), np.round(marked), rounded_area(shift)


def rounded_area(shift: float) -> float:
    """A of the rounded scores; it compares different images, so no correlation enters."""
    bounds = np.arange(-12, 15) - 0.5
    low, high = np.diff(norm.cdf(bounds)), np.diff(norm.cdf(bounds - shift))
    return float(high @ (np.cumsum(low) - low / 2))


def label(n: int, tied: bool, truth: float) -> str:
    return f"{n:>5} {'rounded' if tied else 'normal':<8} {truth:>7.3f}"


def share(interval: tuple[Floats, Floats], truth: float) -> float:
    low, high = interval
    return float(((low <= truth) & (truth <= high)).mean())


def logit_table(units: int) -> dict[tuple[int, bool, float, float], float]:
    correlations = "".join(f"{f'r = {r}':>10}" for r in CORRELATIONS)
    print(f"coverage of the {LEVEL:.0%} logit interval, {units:,} units in each cell")
    print(f"{'n':>5} {'scores':<8} {'true A':>7}{correlations}")
    measured = {}
    for n in IMAGES:
        for tied in (False, True):
            for area in AREAS:
                for r in CORRELATIONS:
                    baseline, marked, truth = simulate(n, units, area, r, tied)
                    interval = logit_interval(*paired_auroc(baseline, marked), n, LEVEL)
                    measured[n, tied, area, r] = share(interval, truth)
                cells = "".join(f"{measured[n, tied, area, r]:>10.2%}" for r in CORRELATIONS)
                print(
                    f"{n:>5} {'rounded' if tied else 'normal':<8} {truth:>7.3f}{cells}", flush=True
                )
    return measured


def bootstrap_table(units: int) -> None:
    print(f"the bootstrap beside it, {units:,} units in each cell: coverage (mean width)")
    print(f"{'n':>5} {'scores':<8} {'true A':>7} {'r':>4} {'bootstrap':>18} {'logit':>18}")
    for n, tied, area, r in (
        (64, False, 0.5, 0.0),
        (64, True, 0.95, 0.9),
        (256, False, 0.5, 0.9),
        (256, False, 0.95, 0.0),
        (256, True, 0.7, 0.5),
    ):
        baseline, marked, truth = simulate(n, units, area, r, tied)
        cells = ""
        for interval in (
            bootstrap_interval(baseline, marked, LEVEL),
            logit_interval(*paired_auroc(baseline, marked), n, LEVEL),
        ):
            width = float((interval[1] - interval[0]).mean())
            cells += f"{f'{share(interval, truth):.2%} ({width:.4f})':>19}"
        print(
            f"{n:>5} {'rounded' if tied else 'normal':<8} {truth:>7.3f} {r:>4}{cells}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--units", type=int, default=4000)
    parser.add_argument("--bootstrap-units", type=int, default=500)
    arguments = parser.parse_args()
    measured = logit_table(arguments.units)
    bootstrap_table(arguments.bootstrap_units)
    for n in IMAGES:
        cells = [held for key, held in measured.items() if key[0] == n]
        false = max(1 - held for key, held in measured.items() if key[0] == n and key[2] == 0.5)
        if n < 256:
            print(f"n = {n}: {min(cells):.2%} to {max(cells):.2%}, false positives {false:.2%}")
            continue
        line(f"n = {n}: least coverage", f"{min(cells):.2%}", ">= 93%", min(cells) >= 0.93)
        line(f"n = {n}: most coverage", f"{max(cells):.2%}", "<= 97%", max(cells) <= 0.97)
        line(f"n = {n}: most false positives, A = 0.5", f"{false:.2%}", "<= 7%", false <= 0.07)


if __name__ == "__main__":
    main()
