"""The figure of a sweep: what masking costs, what it brings, and all outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.reports.figure import (
    ALERT,
    INK,
    LINE,
    SHADES,
    legend_below,
    new_figure,
    shortened,
)


def draw_sweep(
    model: str, heads: Sequence[SweptHead], scenario: str, threshold: float, margin: float
) -> Any:
    """Draw accuracy, largest d and the distribution of A against the share that is masked."""
    figure = new_figure(13, 4.4)
    figure.suptitle(f"Heads on {shortened(model)}, {shortened(scenario)} marks")
    axes = figure.subplots(1, 3)
    _draw_accuracy(axes[0], heads, margin)
    _draw_d(axes[1], heads, scenario, threshold)
    _draw_spread(axes[2], heads, scenario)
    for axis in axes:
        axis.set_xticks(range(len(heads)), [head.name for head in heads], fontsize=8)
        axis.set_xlabel("share of the features that is masked")
        axis.spines[["top", "right"]].set_visible(False)
    legend_below(figure, axes, across=5)
    return figure


def _draw_accuracy(axis: Any, heads: Sequence[SweptHead], margin: float) -> None:
    accuracy = 100 * np.array([head.accuracy for head in heads])
    intervals = 100 * np.array([head.accuracy_interval for head in heads])
    _points(axis, heads, accuracy, intervals, SHADES[2], "accuracy, 95 % interval")
    least = accuracy[0] - 100 * margin
    axis.axhline(
        least, color=LINE, linestyle="--", label=f"accuracy less the margin of {100 * margin:g} %"
    )
    axis.set_ylabel("accuracy, %")
    axis.set_title("What it costs", fontsize=10)


def _draw_d(axis: Any, heads: Sequence[SweptHead], scenario: str, threshold: float) -> None:
    d = np.array([head.d(scenario) for head in heads])
    intervals = np.array([head.interval(scenario) for head in heads])
    _points(axis, heads, d, intervals, ALERT, "largest d of an output, 95 % interval")
    axis.axhline(threshold, color=ALERT, linestyle="--", label=f"threshold {threshold:g}")
    axis.axhline(0.5, color=LINE, linewidth=0.8, linestyle=":", label="0.5: no reaction")
    axis.set_ylim(0.48, 1.01)
    axis.set_ylabel("d")
    axis.set_title("What it brings", fontsize=10)


def _points(
    axis: Any, heads: Sequence[SweptHead], values: Any, intervals: Any, color: str, label: str
) -> None:
    """Draw values with their intervals, joined but for an erasure, which is no share."""
    bounds = np.abs(intervals.T - values)
    axis.errorbar(
        range(len(values)), values, bounds, fmt="o", color=color, markersize=4, capsize=2,
        label=label,
    )  # fmt: skip
    swept = [place for place, head in enumerate(heads) if head.alpha is not None]
    axis.plot(swept, values[swept], color=color, linewidth=1)


def _draw_spread(axis: Any, heads: Sequence[SweptHead], scenario: str) -> None:
    axis.boxplot(
        [head.scores[scenario].auroc for head in heads],
        positions=range(len(heads)),
        widths=0.55,
        whis=(5, 95),
        patch_artist=True,
        boxprops={"facecolor": SHADES[1], "edgecolor": INK, "alpha": 0.6},
        medianprops={"color": INK},
        whiskerprops={"color": INK},
        capprops={"color": INK},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": INK},
    )
    axis.axhline(0.5, color=LINE, linewidth=0.8, linestyle=":")
    axis.set_ylabel("A of the outputs")
    axis.set_title("All outputs (box: half of them, whiskers: 90 %)", fontsize=10)
