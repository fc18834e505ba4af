"""A sensitivity surface as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.exploring.surface import shown
from pytest_watermark_guard.report import TIERS
from pytest_watermark_guard.reporting.figure import new_figure

if TYPE_CHECKING:
    from pytest_watermark_guard.exploring.surface import SurfaceReport

_NAME = 32  # characters
_ACROSS = 2  # panels
_OF_D = (0.5, 1.0)  # the scale of d; what is counted begins at 0
_SHADES = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")


def draw_surface(surface: SurfaceReport, path: Path, units: Sequence[tuple[str, int]] = ()) -> None:
    """Draw curves over one property, or heat maps over two."""
    panels = _panels(surface, units)
    rows = -(-len(panels) // _ACROSS)
    figure = new_figure(4.4 * _ACROSS, 3.0 * rows + 0.4)
    varied = " and ".join(surface.vary)
    figure.suptitle(f"{_short(surface.model)}: {_short(surface.scenario)} marks by {varied}")
    axes = figure.subplots(rows, _ACROSS, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title, fontsize=10)
        if len(surface.vary) == 1:
            _draw_curves(axis, surface, panel)
        else:
            _draw_map(figure, axis, surface, panel)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.savefig(path, dpi=150)


class _Panel(NamedTuple):
    title: str
    curves: dict[str, npt.NDArray[np.float64]]  # one where two properties are varied
    of_d: bool = False


def _panels(surface: SurfaceReport, units: Sequence[tuple[str, int]]) -> list[_Panel]:
    """Say what each panel shows: d, numbers of units, changed predictions."""
    one = len(surface.vary) == 1
    panels: list[_Panel] = []
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
            panels.append(_Panel(f"{layer}: d", {**d, **chosen}, of_d=True))
            panels.append(_Panel(f"{layer}: number of units", counts))
        else:
            for name, grid in (d | chosen).items():
                panels.append(_Panel(f"{layer}: {name}", {name: grid}, of_d=True))
            name = f"d ≥ {TIERS[0]:g}"
            panels.append(_Panel(f"{layer}: units with {name}", {name: counts[name]}))
    if next(iter(surface.reports.values())).impact:
        changed = {"change": 100 * surface.flip_rate()}
        panels.append(_Panel("predictions that change, %", changed))
    return panels


def _draw_curves(axis: Any, surface: SurfaceReport, panel: _Panel) -> None:
    ((name, values),) = surface.vary.items()
    numeric = all(isinstance(value, Real) for value in values)
    places = values if numeric else range(len(values))
    tiers = not panel.of_d and len(panel.curves) == len(TIERS)
    colors = _SHADES if tiers else (None,) * len(panel.curves)
    for (label, curve), color in zip(panel.curves.items(), colors, strict=True):
        axis.plot(places, curve, "o-", color=color, markersize=4, label=label)
    if panel.of_d:
        axis.set_ylim(_OF_D[0] - 0.01, _OF_D[1] + 0.01)
    else:
        axis.set_ylim(bottom=0)
    if not numeric:
        axis.set_xticks(places, [_short(shown(value)) for value in values], fontsize=7, rotation=30)
    axis.set_xlabel(name)
    axis.grid(alpha=0.3)
    if len(panel.curves) > 1:
        axis.legend(fontsize=7)


def _draw_map(figure: Any, axis: Any, surface: SurfaceReport, panel: _Panel) -> None:
    (down, rows), (across, columns) = surface.vary.items()
    (grid,) = panel.curves.values()
    low, high = _OF_D if panel.of_d else (0.0, max(1.0, float(grid.max())))
    image = axis.imshow(grid, cmap="Blues", aspect="auto", vmin=low, vmax=high)
    for row, column in np.ndindex(grid.shape):
        value = grid[row, column]
        color = "white" if value > (low + high) / 2 else "black"
        text = f"{value:.3f}" if panel.of_d else f"{value:.3g}"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(len(columns)), [_short(shown(v)) for v in columns], fontsize=8)
    axis.set_yticks(range(len(rows)), [_short(shown(v)) for v in rows], fontsize=8)
    axis.set_xlabel(across)
    axis.set_ylabel(down)
    figure.colorbar(image, ax=axis)


def _short(name: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return clean if len(clean) <= _NAME else clean[: _NAME - 1] + "…"
