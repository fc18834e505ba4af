"""How early does the sequential verdict fall, and how often does it differ from the full run's?

``python benchmarks/sequential.py`` (half an hour on a CPU) prints the whole table in one go:
simulations of clear and close cases, the rate of errors at the threshold, and, with
``WATERMARK_GUARD_DATA`` set, a real network's activations (minutes more for computing them, unless
``--activations FILE`` has them from before). Lines come as they are known.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Hashable, Iterable
from pathlib import Path

import numpy as np
import torch
from common import DATA, line, mobilenet_spec, photos_below, print_machine, real_data
from scipy.optimize import brentq
from scipy.stats import norm

import pytest_watermark_guard as wm
from pytest_watermark_guard.statistics.auroc import auroc
from pytest_watermark_guard.statistics.sequential import SequentialGate

IMAGES = 998
THRESHOLD = 0.95
SCRIPTS = ("chinese", "latin", "hindi", "arabic_numerals")
Pair = tuple[np.ndarray, np.ndarray]
Scores = dict[Hashable, Pair]


def early_verdict(
    scores: Scores, threshold: float, error: float, seed: int
) -> tuple[str | None, int]:
    """Show the images in an order of the seed's; return the verdict and the images it needed."""
    total = len(next(iter(scores.values()))[0])
    order = np.random.default_rng(seed).permutation(total)
    gate = SequentialGate(threshold, error, total, seed)
    for rows in np.array_split(order, range(32, total, 32)):
        gate.update({key: (low[rows], high[rows]) for key, (low, high) in scores.items()})
        if gate.verdict is not None:
            return gate.verdict, gate.n_images
    return None, total


def report(name: str, runs: Iterable[tuple[str | None, int, bool]], total: int) -> None:
    """Print agreement and images of runs: verdict, images, and whether the full run fails."""
    verdicts, images, sensitive = zip(*runs, strict=True)
    agree = [
        verdict in (None, "sensitive" if fails else "clean")  # undecided: the full run decides
        for verdict, fails in zip(verdicts, sensitive, strict=True)
    ]
    share = np.array(images) / total
    median, late = np.median(share), np.quantile(share, 0.95)
    line(f"{name}: agreement", f"{np.mean(agree):.1%}", ">= 99.5%", np.mean(agree) >= 0.995)
    early = 1 - verdicts.count(None) / len(verdicts)
    what = f"  early in {early:.1%}; images, 95th percentile {late:.1%}, median"
    line(what, f"{median:.1%}", "<= 25%", median <= 0.25)


def largest(scores: Scores) -> float:
    areas = np.concatenate([auroc(low, high) for low, high in scores.values()])
    return float(np.maximum(areas, 1 - areas).max())


def binormal(rng: np.random.Generator, areas: np.ndarray, correlation: float) -> Pair:
    shape = (IMAGES, len(areas))
    shared = np.float32(np.sqrt(correlation)) * rng.standard_normal(shape, dtype=np.float32)
    own = np.float32(np.sqrt(1 - correlation))
    shift = np.where(areas < 1, np.sqrt(2) * norm.ppf(areas), 100).astype(np.float32)
    baseline = shared + own * rng.standard_normal(shape, dtype=np.float32)
    return baseline, shared + own * rng.standard_normal(shape, dtype=np.float32) + shift


def simulate(runs: int, error: float) -> None:
    print(f"\n500 binormal units, {IMAGES} images, threshold {THRESHOLD}, {runs} runs each")

    def one(seed: int) -> tuple[str | None, int, bool]:
        low, high = binormal(np.random.default_rng((seed, 1)), areas, correlation)
        # The other units are far below the threshold, whatever the sample.
        sensitive = largest({"top": (low[:, -1:], high[:, -1:])}) >= THRESHOLD
        return *early_verdict({"layer": (low, high)}, THRESHOLD, error, seed), sensitive

    for top in (0.8, 0.85, 0.94, 0.949, 0.951, 0.96, 0.99, 0.995, 1.0):
        areas = np.append(np.linspace(0.5, min(top, 0.85), 499), top)
        for correlation in (0.0, 0.5, 0.9):
            name = f"largest d {top}, correlation {correlation}"
            report(name, map(one, range(runs)), IMAGES)


def boundary(runs: int, error: float) -> None:
    """Count wrong verdicts where the full run is as near to the threshold as 300 images allow."""
    images, units = 300, 20
    print(f"\n{images} images, {runs} runs")
    for wrong, losers in (("clean", 15), ("sensitive", 16), ("sensitive, worst case", 8)):
        found = []
        for seed in range(runs):
            rng = np.random.default_rng((seed, 2))
            lost = rng.random((images, units)).argsort(axis=0) < losers
            if wrong == "clean":
                lost[:, 1:] = rng.random((images, units - 1)) < 0.5
            # A loser ties with the others: A = 1 - losers / images. At worst it also loses.
            reach = 2 if "worst" in wrong else 1
            scores = np.where(lost, reach, 0), np.where(lost, 1 - reach, 1)
            found.append(early_verdict({"layer": scores}, THRESHOLD, error, seed)[0])
        rate = found.count(wrong.split(",")[0]) / runs
        name = f"largest d {largest({'layer': scores}):.4f}: wrongly {wrong}"
        line(name, f"{rate:.4f}", f"<= {error}", rate <= error)


def activations(file: Path | None) -> Scores:
    """Return MobileNet V2's features and logits under every script."""
    if file is None or not file.exists():
        arrays = _run_mobilenet()
        if file is None:
            return _paired(arrays)
        np.savez(file, **arrays)
    with np.load(file) as arrays:
        return _paired(dict(arrays))


def _paired(arrays: dict[str, np.ndarray]) -> Scores:
    return {
        (layer, script): (arrays[f"{layer} "], arrays[f"{layer} {script}"])
        for layer in ("features", "logits")
        for script in SCRIPTS
    }


@torch.inference_mode()
def _run_mobilenet() -> dict[str, np.ndarray]:
    data = real_data()
    model = wm.load_model(mobilenet_spec(data)).module.to(memory_format=torch.channels_last).eval()
    features: list[torch.Tensor] = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    parts: dict[str, list[np.ndarray]] = {}
    folder = photos_below(data)
    for batch in wm.probing_batches(folder, SCRIPTS, model=model):
        for script, images in {"": batch.images, **batch.marked}.items():
            logits = model(images.contiguous(memory_format=torch.channels_last))
            parts.setdefault(f"logits {script}", []).append(logits.numpy())
            parts.setdefault(f"features {script}", []).append(features.pop().numpy())
    return {key: np.concatenate(rows) for key, rows in parts.items()}


def planted(low: np.ndarray, high: np.ndarray, area: float) -> Pair:
    """Return one unit that adds a constant on the marked images, such that A is about `area`."""
    reach = float(np.ptp(low) + np.ptp(high)) + 1
    if area == 1:
        return low, high + np.float32(reach)
    constant = brentq(lambda c: float(auroc(low, high + c)[0]) - area, 0, reach, xtol=1e-4)
    return low, high + np.float32(constant)


def real(file: Path | None, runs: int, error: float) -> None:
    scores = activations(file)
    total = len(scores["logits", "latin"][0])
    unit = tuple(side[:, :1] for side in scores["features", "latin"])
    cases: list[tuple[str, Scores, float]] = [
        (f"threshold {threshold}", scores, threshold)
        for threshold in (0.95, 0.92, 0.9, 0.87, 0.85, 0.8, 0.7)
    ]
    for area in (0.97, 0.99, 0.995, 1.0):
        more: Scores = {**scores, "planted": planted(*unit, area)}
        cases.append((f"threshold {THRESHOLD}, a planted unit of {area}", more, THRESHOLD))
    units = sum(low.shape[1] for low, _ in scores.values())
    print(f"\nMobileNet V2, {total} photos, {units} units, {runs} orders")
    for name, probed, threshold in cases:
        d = largest(probed)
        orders = (
            (*early_verdict(probed, threshold, error, seed), d >= threshold) for seed in range(runs)
        )
        report(f"{name} (d {d:.3f})", orders, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--error", type=float, default=0.001)
    parser.add_argument("--runs", type=int, default=200, help="of every case")
    parser.add_argument("--boundary-runs", type=int, default=2000)
    parser.add_argument("--activations", type=Path, help=".npz to keep a network's scores in")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # also into a file
    print_machine()
    if options.runs:
        simulate(options.runs, options.error)
    if options.boundary_runs:
        for error in (options.error, 0.05):  # a risk that so few runs can see
            boundary(options.boundary_runs, error)
    if os.environ.get(DATA):
        real(options.activations, options.runs, options.error)


if __name__ == "__main__":
    main()
