"""A sensitivity surface as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.exploring.surface import shown
from pytest_watermark_guard.report import TIERS

if TYPE_CHECKING:
    from pytest_watermark_guard.exploring.surface import SurfaceReport

_NAME = 32  # characters
_SHADES = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")


def draw_surface(surface: SurfaceReport, path: Path, units: Sequence[tuple[str, int]] = ()) -> None:
    """Draw curves over one property, or heat maps over two."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "a picture is drawn by matplotlib, which is not installed: "
            "pip install pytest-watermark-guard[plot]"
        ) from error
    panels = _panels(surface, units)
    rows = 1 if len(surface.vary) == 2 else 2
    figure = Figure(figsize=(4.0 * -(-len(panels) // rows), 3.4 * rows), layout="constrained")
    varied = " and ".join(surface.vary)
    figure.suptitle(f"{_short(surface.model)}: {_short(surface.scenario)} marks by {varied}")
    axes = figure.subplots(rows, -(-len(panels) // rows), squeeze=False).T.ravel()
    for axis, (title, curves) in zip(axes, panels, strict=False):
        axis.set_title(title, fontsize=10)
        if len(surface.vary) == 1:
            _draw_curves(axis, surface, curves)
        else:
            _draw_map(figure, axis, surface, next(iter(curves.values())))
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.savefig(path, dpi=150)


Panel = tuple[str, dict[str, npt.NDArray[np.float64]]]


def _panels(surface: SurfaceReport, units: Sequence[tuple[str, int]]) -> list[Panel]:
    """Say what each panel shows: d, numbers of units, changed predictions."""
    one = len(surface.vary) == 1
    panels: list[Panel] = []
    for layer in surface.layers:
        scores = next(iter(surface.reports.values()))[layer, surface.scenario]
        d = {"largest d": surface.differentiability(layer)}
        chosen = {
            f"d of {_short(scores.unit(unit).label)}": surface.differentiability(layer, unit)
            for of, unit in units
            if of == layer
        }
        counts = {f"d ≥ {tier:g}": surface.counts(layer, tier).astype(np.float64) for tier in TIERS}
        if one:
            panels += [(f"{layer}: d", {**d, **chosen}), (f"{layer}: number of units", counts)]
        else:
            panels += [(f"{layer}: {name}", {name: grid}) for name, grid in (d | chosen).items()]
            name = f"d ≥ {TIERS[0]:g}"
            panels.append((f"{layer}: units with {name}", {name: counts[name]}))
    if next(iter(surface.reports.values())).impact:
        changed = {"change": 100 * surface.flip_rate()}
        panels.append(("predictions that change, %", changed))
    return panels


def _draw_curves(axis: Any, surface: SurfaceReport, curves: dict[str, Any]) -> None:
    ((name, values),) = surface.vary.items()
    numeric = all(isinstance(value, Real) for value in values)
    places = values if numeric else range(len(values))
    colors = _SHADES if len(curves) == len(TIERS) else (None,) * len(curves)
    for (label, curve), color in zip(curves.items(), colors, strict=True):
        axis.plot(places, curve, "o-", color=color, markersize=4, label=label)
    if not numeric:
        axis.set_xticks(places, [_short(shown(value)) for value in values], fontsize=7, rotation=30)
    axis.set_xlabel(name)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def _draw_map(figure: Any, axis: Any, surface: SurfaceReport, grid: Any) -> None:
    (down, rows), (across, columns) = surface.vary.items()
    image = axis.imshow(grid, cmap="Blues", aspect="auto")
    low, high = float(grid.min()), float(grid.max())
    for row, column in np.ndindex(grid.shape):
        value = grid[row, column]
        color = "white" if value > (low + high) / 2 else "black"
        text = f"{value:.3f}" if high <= 1 and low >= 0.5 else f"{value:.3g}"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(columns)), [_short(shown(v)) for v in columns], fontsize=8)
    axis.set_yticks(range(len(rows)), [_short(shown(v)) for v in rows], fontsize=8)
    axis.set_xlabel(across)
    axis.set_ylabel(down)
    figure.colorbar(image, ax=axis)


def _short(name: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return clean if len(clean) <= _NAME else clean[: _NAME - 1] + "…"
