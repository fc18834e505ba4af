"""Figures of one probe: how many units reach each d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pytest_watermark_guard.reports.figure import ALERT, legend_below, new_figure, shortened
from pytest_watermark_guard.reports.scores import Scores

SERIES = ("#0969a9", "#b35900", "#1a7f5a", "#8250b0", "#6e7781", "#a03070")


def draw_probe(model: str, by_layer: Sequence[Sequence[Scores]], threshold: float = 0.95) -> Any:
    """Draw a panel for each layer, beside each other."""
    figure = new_figure(4.6 * len(by_layer), 3.6)
    figure.suptitle(f"{shortened(model, 60)}: units that tell marked images from clean ones")
    axes = list(figure.subplots(1, len(by_layer), squeeze=False)[0])
    for axis, scores in zip(axes, by_layer, strict=True):
        draw_distribution(axis, scores, threshold)
    legend_below(figure, axes, across=5)
    return figure


def draw_distribution(axis: Any, by_scenario: Sequence[Scores], threshold: float) -> None:
    """Draw how many units of a layer reach each d, a line for each scenario."""
    grid = np.linspace(0.5, 1, 101)
    for number, scores in enumerate(by_scenario):
        d = np.sort(scores.differentiability)
        reach = len(d) - np.searchsorted(d, grid)
        name = shortened(scores.scenario, 24)
        color = SERIES[number % len(SERIES)]
        style = ("-", "--", "-.", ":")[number % 4]  # not by colour alone
        # A logarithmic scale has no 0: where no unit is left the line ends.
        reach_or_none = np.where(reach > 0, reach, np.nan)
        axis.step(grid, reach_or_none, style, where="post", color=color, lw=1.6, label=name)
    axis.axvline(threshold, color=ALERT, lw=1, ls="--", label=f"threshold {threshold:g}")
    axis.set_yscale("log")
    axis.set(xlim=(0.5, 1), ylim=(0.8, None), xlabel="d", ylabel="units at or above d")
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    layer = by_scenario[0].layer
    axis.set_title(f"{shortened(layer, 24)}: units that reach d", fontsize=10)
