"""A survey of many models as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_watermark_guard.report import TIERS
from pytest_watermark_guard.reporting.figure import new_figure

if TYPE_CHECKING:
    from pytest_watermark_guard.surveying import SurveyReport

_SHOWN = 12  # classes at either end of the ranking
_NAME = 26  # characters
_SHADES = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")


def draw_survey(survey: SurveyReport, path: Path, scenario: str) -> None:
    """Draw the classes' ranking, a dot for each model, and each model's units by d."""
    layers = [layer for layer in survey.layers if survey.counts(layer, scenario, TIERS[0])]
    with_classes = "logits" in layers
    models = max(len(survey.counts(layer, scenario, TIERS[0])) for layer in layers)
    height = max(4.0, 0.24 * models + 2.2, 0.24 * (2 * _SHOWN) + 2.2 if with_classes else 0)
    panels = len(layers) + with_classes
    figure = new_figure(4.6 * panels, height)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    figure.suptitle(f"Reaction to {scenario} marks, {len(survey.reports)} models")
    if with_classes:
        _draw_classes(axes.pop(0), survey, scenario)
    for axis, layer in zip(axes, layers, strict=True):
        _draw_counts(axis, survey, layer, scenario)
    figure.savefig(path, dpi=150)


def _draw_classes(axis: Any, survey: SurveyReport, scenario: str) -> None:
    found = survey.classes(scenario)
    order = found.ends(_SHOWN)
    places = np.arange(len(order))
    for row, areas in enumerate(found.auroc):
        label = "one model" if row == 0 else None
        axis.plot(areas[order], places, "o", color=_SHADES[1], markersize=3.5, label=label)
    axis.plot(found.mean[order], places, "|", color="black", markersize=11, label="mean")
    axis.axvline(0.5, color="grey", linewidth=0.8)
    if len(order) < len(found.names):
        axis.axhline(_SHOWN - 0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_yticks(places, [_short(found.names[index]) for index in order], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("A (0.5: no reaction)")
    of = "" if len(found.models) == len(survey.reports) else f" of {len(found.models)} models"
    axis.set_title(f"Classes, highest and lowest mean A{of}", fontsize=10)
    axis.legend(fontsize=7, loc="lower right")


def _draw_counts(axis: Any, survey: SurveyReport, layer: str, scenario: str) -> None:
    tiers = [survey.counts(layer, scenario, tier) for tier in TIERS]
    models = sorted(tiers[0], key=lambda name: [-tier[name][0] / tier[name][1] for tier in tiers])
    places = np.arange(len(models))
    for tier, counts, shade in zip(TIERS, tiers, _SHADES, strict=True):
        shares = [100 * counts[name][0] / counts[name][1] for name in models]
        axis.barh(places, shares, color=shade, label=f"d ≥ {tier:g}")
    for place, name in zip(places, models, strict=True):
        number, units = tiers[0][name]
        axis.text(100 * number / units, place, f" {number}", va="center", fontsize=7)
    axis.set_yticks(places, [_short(name) for name in models], fontsize=7)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel(f"% of units (number: with d ≥ {TIERS[0]:g})")
    axis.set_title(layer, fontsize=10)
    axis.legend(fontsize=7, loc="lower right")


def _short(name: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return clean if len(clean) <= _NAME else clean[: _NAME - 1] + "…"
