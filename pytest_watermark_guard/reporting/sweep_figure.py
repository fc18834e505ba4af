"""A sweep as a picture: what masking costs, and what it brings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_watermark_guard.reporting.figure import new_figure

if TYPE_CHECKING:
    from pytest_watermark_guard.mitigation.sweep_report import SweepReport, SweptHead

_ACCURACY, _D, _SPREAD = "#2171b5", "#cb181d", "#6baed6"


def draw_sweep(sweep: SweepReport, path: Path) -> None:
    """Draw accuracy and largest d against alpha, and the distribution of A, erasure beside them."""
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    heads = [*sweep.heads] + ([sweep.erased] if sweep.erased else [])
    scenario = sweep.scenarios[0]
    _draw_trade(left, sweep, heads, scenario)
    _draw_spread(right, heads, scenario)
    for axis in (left, right):
        axis.set_xticks(range(len(heads)), [_called(head) for head in heads], fontsize=8)
        axis.set_xlabel("share of the features that is masked")
        axis.spines[["top"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _draw_trade(axis: Any, sweep: SweepReport, heads: list[SweptHead], scenario: str) -> None:
    swept = np.arange(len(sweep.heads))
    places = np.arange(len(heads))
    accuracy = np.array([head.accuracy for head in heads])
    bounds = np.abs(np.array([head.accuracy_interval for head in heads]).T - accuracy)
    axis.errorbar(places, accuracy, bounds, fmt="o", color=_ACCURACY, markersize=4, capsize=2)
    axis.plot(swept, accuracy[swept], color=_ACCURACY, linewidth=1)
    axis.set_ylabel("accuracy, with 95 % interval", color=_ACCURACY)
    other = axis.twinx()
    d = np.array([head.d(scenario) for head in heads])
    other.plot(places, d, "s", color=_D, markersize=4)
    other.plot(swept, d[swept], color=_D, linewidth=1)
    other.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    other.set_ylim(0.48, max(0.8, float(d.max()) + 0.03))
    other.set_ylabel(f"largest d of an output under {scenario}", color=_D)
    other.spines[["top"]].set_visible(False)
    axis.set_title("What it costs, and what it brings", fontsize=10)


def _draw_spread(axis: Any, heads: list[SweptHead], scenario: str) -> None:
    areas = [head.scores[scenario].auroc for head in heads]
    axis.boxplot(
        areas,
        positions=range(len(heads)),
        widths=0.55,
        whis=(5, 95),
        patch_artist=True,
        boxprops={"facecolor": _SPREAD, "alpha": 0.6},
        medianprops={"color": "black"},
        flierprops={"marker": ".", "markersize": 3},
    )
    axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_ylabel(f"A of the outputs under {scenario}")
    axis.set_title("All outputs (box: half of them, whiskers: 90 %)", fontsize=10)


def _called(head: SweptHead) -> str:
    return "erasure" if head.alpha is None else f"{head.alpha:g}"
