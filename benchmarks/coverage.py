"""How often the intervals hold the truth, and how often decisions are right.

Each table takes up to three minutes on one core, with ``--quick`` some seconds and rougher figures:

- single: A of one unit, for scores that are normal with an image's two correlated, rounded (ties
  everywhere), of heavy tails, and with a rare image that loses with both of its scores;
- groups: the same where five images each are near duplicates;
- largest: the largest d of 2,000 units together;
- shares: of images, and the difference of two, some in groups of five;
- boundary: how often "reaches" and "below" are said of a unit exactly at the threshold;
- decisions: "reaches", "below", "unclear" on a real network's features and logits under Chinese
  marks, whose largest d over 998 photos is 0.881, from random subsets of the photos; beside it the
  plain rule that the largest d found is held against the threshold;
- power: the same with one more unit, of a true A of 0.99.

``python benchmarks/coverage.py [--quick] [--units N] [--activations FILE]``. The last two need
``WATERMARK_GUARD_DATA``; activations take minutes to compute, unless the file has them from before.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import DATA, line
from scipy.stats import norm
from sequential import activations

from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.statistics.decisions import decide
from pytest_watermark_guard.statistics.intervals import logit_interval
from pytest_watermark_guard.statistics.largest import largest_d_interval
from pytest_watermark_guard.statistics.proportions import (
    paired_difference_interval,
    share_interval,
)

Floats = npt.NDArray[np.float64]
Scores = tuple[Floats, Floats]
LEVEL = 0.95
AREAS = (0.5, 0.7, 0.85, 0.95, 0.99, 0.999)
IMAGES = (10, 20, 50, 100, 200, 998)
KINDS = ("normal 0", "normal 0.5", "normal 0.9", "rounded 0.5", "heavy", "rare")
THRESHOLDS = (0.95, 0.9)
COPIES = 5
ALIKE = 0.9  # correlation of near duplicates
PLANTED = 0.99


def normal(rng: np.random.Generator, n: int, areas: Floats, correlation: float) -> Scores:
    """Scores [n, units] of which an image's two are correlated."""
    shared, low, high = rng.standard_normal((3, n, len(areas)))
    shared, own = np.sqrt(correlation) * shared, np.sqrt(1 - correlation)
    return shared + own * low, shared + own * high + np.sqrt(2) * norm.ppf(areas)


def simulate(kind: str, n: int, units: int, area: float) -> tuple[Scores, float]:
    """Draw baseline and marked scores [n, units], and return them with the true A."""
    rng = np.random.default_rng([n, int(1000 * area), KINDS.index(kind)])
    name, _, correlation = kind.partition(" ")
    if name == "heavy":
        low, high = rng.standard_t(2, (2, n, units))
        return (low, high + heavy_shift(area)), area
    if name == "rare":
        loses = rng.random((n, units)) < 1 - np.sqrt(area)
        low, high = rng.random((2, n, units))
        return (low + 9 * loses, high + np.where(loses, -9, 3)), area
    scores = normal(rng, n, np.full(units, area), float(correlation))
    if name == "normal":
        return scores, area
    return (np.round(scores[0]), np.round(scores[1])), rounded_area(area)


def heavy_shift(area: float) -> float:
    low, high = np.random.default_rng(0).standard_t(2, (2, 2_000_000))
    return float(np.quantile(low - high, area))


def rounded_area(area: float) -> float:
    """A of the rounded scores; it compares different images, so no correlation enters."""
    shift = np.sqrt(2) * norm.ppf(area)
    bounds = np.arange(-12, 19) - 0.5
    low, high = np.diff(norm.cdf(bounds)), np.diff(norm.cdf(bounds - shift))
    return float(high @ (np.cumsum(low) - low / 2))


def check_least(shares: Iterable[float], runs: int) -> None:
    """Hold the least share against 93 %, or what chance makes of 95 % in fewer runs."""
    wanted = min(0.93, LEVEL - 3.5 * np.sqrt(LEVEL * (1 - LEVEL) / runs))
    least = min(shares)
    line("least coverage", f"{least:.1%}", f">= {wanted:.0%}", least >= wanted)


def held(bounds: tuple[npt.ArrayLike, npt.ArrayLike], truth: float) -> float:
    low, high = map(np.asarray, bounds)
    return float(((low <= truth) & (truth <= high)).mean())


def cells(values: list[float]) -> str:
    return "".join(f"{value:>9.1%}" for value in values)


def single(units: int) -> None:
    print(
        f"\nsingle: coverage of the {LEVEL:.0%} interval, {units:,} units in each cell, by true A"
    )
    print(f"{'n':>5} {'scores':<12}" + "".join(f"{area:>9}" for area in AREAS))
    found, most = [], 0.0
    for n in IMAGES:
        for kind in KINDS:
            row = []
            for area in AREAS:
                scores, truth = simulate(kind, n, units if n < 500 else units // 2, area)
                row.append(held(logit_interval(*paired_auroc(*scores), n, LEVEL), truth))
            print(f"{n:>5} {kind:<12}" + cells(row), flush=True)
            found.extend(row)
            if n >= 100:
                most = max(most, *row[:3])  # no bound of few images enters
    check_least(found, units // 2)
    print(f"most, n >= 100 and A <= 0.85: {most:.1%}")


def grouped(units: int) -> None:
    print(f"\ngroups of {COPIES}: coverage with and (without) them, by true A, and its mean width")
    found = []
    for n in (50, 100, 200, 995):
        ids = np.repeat(np.arange(n // COPIES), COPIES)
        row = []
        for area in AREAS[:4]:
            rng = np.random.default_rng([n, int(1000 * area)])
            some = np.full(units if n < 500 else units // 2, 0.5)
            alike, own = normal(rng, n // COPIES, some, 0.5), normal(rng, n, some, 0.5)
            low, high = (
                np.sqrt(ALIKE) * np.repeat(group, COPIES, axis=0) + np.sqrt(1 - ALIKE) * each
                for group, each in zip(alike, own, strict=True)
            )
            mixed = low, high + np.sqrt(2) * norm.ppf(area)
            with_groups = logit_interval(*paired_auroc(*mixed, groups=ids), n // COPIES, LEVEL)
            without = logit_interval(*paired_auroc(*mixed), n, LEVEL)
            share, width = held(with_groups, area), np.mean(with_groups[1] - with_groups[0])
            row.append(f"{share:>8.1%} ({held(without, area):.0%}) {width:.3f}")
            found.append(share)
        print(f"{n:>5} " + "".join(row), flush=True)
    check_least(found, units // 2)


def largest(repetitions: int, units: int = 2000) -> None:
    print(f"\nlargest: {units:,} units, correlated by 0.5; misses below and above, mean interval")
    cases = {
        "all at chance": [0.5],
        "one at 0.9": [0.9],
        "twenty at 0.9": [0.9] * 20,
    }
    found = []
    for n in IMAGES:
        for name, leaders in cases.items():
            areas = np.full(units, 0.5)
            areas[: len(leaders)] = leaders
            runs = repetitions if n < 500 else max(20, repetitions // 5)
            bounds = np.array([_largest_once(seed, n, areas) for seed in range(runs)])
            share = held((bounds[:, 0], bounds[:, 1]), areas.max())
            low, high = bounds.mean(axis=0)
            misses = (bounds[:, 0] > areas.max()).mean(), (bounds[:, 1] < areas.max()).mean()
            print(f"{n:>5} {name:<14}{cells(list(misses))}   {low:.3f}-{high:.3f}", flush=True)
            found.append(share)
    check_least(found, max(20, repetitions // 5))


def _largest_once(seed: int, n: int, areas: Floats) -> tuple[float, float]:
    rng = np.random.default_rng([seed, n, 5])
    common = rng.standard_normal((2, n, 1), dtype=np.float32)
    shape = (n, len(areas))
    low, high = (
        np.sqrt(np.float32(0.5)) * (each + rng.standard_normal(shape, dtype=np.float32))
        for each in common
    )
    high += (np.sqrt(2) * norm.ppf(areas)).astype(np.float32)
    return largest_d_interval(low, high, LEVEL, seed=seed)


def shares(repetitions: int) -> None:
    print("\nshares: coverage of a share, of a difference, and of both in groups of five")
    rates = (0.01, 0.05, 0.2, 0.5)
    pairs = ((0.05, 0.01), (0.1, 0.1), (0.3, 0.1), (0.9, 0.05))
    print(f"{'n':>5}" + "".join(f"{f'{rate:.0%}':>9}" for rate in rates), end="")
    print("".join(f"{f'{a:.0%} - {b:.0%}':>12}" for a, b in pairs))
    for n in IMAGES:
        rng = np.random.default_rng(n)
        row = [
            held(_bounds(share_interval, rng.random((repetitions, n)) < rate), rate)
            for rate in rates
        ]
        differences = [
            held(
                _bounds(
                    paired_difference_interval,
                    rng.choice([1, -1, 0], size=(repetitions, n), p=[a, b, 1 - a - b]),
                ),
                a - b,
            )
            for a, b in pairs
        ]
        print(f"{n:>5}{cells(row)}" + "".join(f"{share:>12.1%}" for share in differences))
        if n < 50:
            continue
        ids = np.arange(n) // COPIES
        by_group = rng.random((repetitions, ids[-1] + 1))[:, ids]
        draws = np.where(rng.random((repetitions, n)) < ALIKE, by_group, rng.random(by_group.shape))
        row = [held(_bounds(share_interval, draws < rate, ids), rate) for rate in rates]
        differences = [
            held(
                _bounds(
                    paired_difference_interval,
                    (draws < a).astype(int) - (draws > 1 - b),
                    ids,
                ),
                a - b,
            )
            for a, b in pairs
        ]
        print(
            f"   by{cells(row)}" + "".join(f"{share:>12.1%}" for share in differences), flush=True
        )


def _bounds(interval, rows, groups=None) -> tuple[Floats, Floats]:
    low, high = np.array([interval(row, LEVEL, groups) for row in rows]).T
    return low, high


def boundary(units: int) -> None:
    """Each answer is an error for one of two truths: A just below the threshold, or at it."""
    print(
        f"\nboundary: one unit of A = {THRESHOLDS[0]}, the threshold; {units} samples in each cell"
    )
    print(f"{'n':>5}" + "".join(f"{kind:>16}" for kind in KINDS) + '   "reaches", "below"')
    for n in IMAGES:
        print(f"{n:>5}", end="")
        for kind in KINDS:
            scores, truth = simulate(kind, n, units, THRESHOLDS[0])
            found = np.stack(paired_auroc(*scores), axis=1)
            said = [decide(area, error, n, truth).answer for area, error in found[..., None]]
            errors = (said.count(answer) / units for answer in ("reaches", "below"))
            print("".join(f"{share:>8.1%}" for share in errors), end="")
        print(flush=True)


def real(file: Path | None, runs: int) -> None:
    scores = activations(file)
    low, high = (
        np.concatenate([scores[layer, "chinese"][side] for layer in ("features", "logits")], axis=1)
        for side in (0, 1)
    )
    area, _ = paired_auroc(low, high)
    truth = float(np.maximum(area, 1 - area).max())
    units = low.shape[1]
    print(f"\ndecisions: {units:,} units of a MobileNet V2, largest d {truth:.3f}, {runs} subsets")
    print(f"{'n':>5} {'threshold':>9}{'plain rule':>12}{'reaches':>9}{'unclear':>9}{'below':>9}")
    power = []
    false = 0.0
    for n in IMAGES[:-1]:
        answers: dict[float, list[str]] = {threshold: [] for threshold in THRESHOLDS}
        plain = dict.fromkeys(THRESHOLDS, 0)
        planted: dict[float, list[str]] = {correlation: [] for correlation in (0.0, 0.5)}
        for seed in range(runs):
            rng = np.random.default_rng([n, seed])
            photos = rng.choice(len(low), n, replace=False)
            found = paired_auroc(low[photos], high[photos])
            for threshold in THRESHOLDS:
                answers[threshold].append(decide(*found, n, threshold).answer)
                plain[threshold] += np.maximum(found.auroc, 1 - found.auroc).max() >= threshold
            for correlation, kept in planted.items():
                unit = paired_auroc(*normal(rng, n, np.array([PLANTED]), correlation))
                both = (np.append(*sides) for sides in zip(found, unit, strict=True))
                kept.append(decide(*both, n, THRESHOLDS[0]).answer)
        for threshold, said in answers.items():
            row = [said.count(answer) / runs for answer in ("reaches", "unclear", "below")]
            false = max(false, row[0])
            print(f"{n:>5} {threshold:>9}{plain[threshold] / runs:>12.1%}{cells(row)}", flush=True)
        power.append((n, [said.count("reaches") / runs for said in planted.values()]))
    line('most false "reaches"', f"{false:.1%}", "<= 1%", false <= 0.01)
    print(f"\npower: with a unit of A = {PLANTED}, {THRESHOLDS[0]} is said to be reached,")
    print("an image's two scores correlated by 0 and by 0.5")
    for n, row in power:
        print(f"{n:>5}" + cells(row))
    least = min(min(row) for n, row in power if n >= 100)
    line("least power from 100 images on", f"{least:.1%}", ">= 95%", least >= 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the repetitions")
    parser.add_argument("--units", type=int, default=4000, help="simulated for each cell")
    parser.add_argument("--activations", type=Path, help=".npz to keep a network's scores in")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # also into a file
    less = 10 if options.quick else 1
    tables = [
        lambda: single(options.units // less),
        lambda: grouped(options.units // less),
        lambda: largest(200 // less),
        lambda: shares(1000 // less),
        lambda: boundary(500 // less),
    ]
    if os.environ.get(DATA):
        tables.append(lambda: real(options.activations, 200 // less))
    for table in tables:
        begin = time.perf_counter()
        table()
        print(f"({time.perf_counter() - begin:.0f} s)")


if __name__ == "__main__":
    main()
