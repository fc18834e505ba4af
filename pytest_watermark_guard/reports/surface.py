"""Sensitivity as a function of the mark: its data, its table and its figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.drawing import Style, rendered, table
from pytest_watermark_guard.reports.figure import (
    ALERT,
    LINE,
    SHADES,
    legend_below,
    new_figure,
    shortened,
)
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.probe_figure import SERIES
from pytest_watermark_guard.reports.report import Report, Row, saved
from pytest_watermark_guard.reports.scores import TIERS
from pytest_watermark_guard.reports.text import TIER_HEADER, count, gains, printable

FORMAT = DocumentFormat("surface", "surface")
Floats = npt.NDArray[np.float64]
Value = Any  # number, name, or tuple of numbers: what a Scenario takes
Point = tuple[Value, ...]


@dataclass(frozen=True, eq=False, repr=False)
class SurfaceReport(Report):
    """What a model does as the mark changes.

    Grids have one axis for each varied property, in the order of `vary`.

    Attributes
    ----------
    model : str
    scenario : str
    vary : mapping of str to tuple
        The values of each varied property, one property or two.
    reports : mapping of tuple to ProbeReport
        By the point: one value for each property, in the order of `vary`.
    """

    model: str
    scenario: str
    vary: Mapping[str, tuple[Value, ...]]
    reports: Mapping[Point, ProbeReport]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers probed, in order."""
        return self._first.layers

    @property
    def _first(self) -> ProbeReport:
        return next(iter(self.reports.values()))

    def __getitem__(self, point: Value) -> ProbeReport:
        """Return the report at a point; with one property its value alone will do."""
        key = (point,) if len(self.vary) == 1 and (point,) in self.reports else point
        try:
            return self.reports[key]
        except (KeyError, TypeError):
            shown = "; ".join(f"{name}: {values}" for name, values in self.vary.items())
            raise KeyError(f"no point {point!r} on this surface; it has {shown}") from None

    def differentiability(self, layer: str, unit: int | None = None) -> Floats:
        """Return d on the grid: of one unit, or of the most differentiable unit at each point."""

        def reached(report: ProbeReport) -> float:
            d = report[layer, self.scenario].differentiability
            return float(d.max() if unit is None else d[unit])

        return self._grid(reached)

    def counts(self, layer: str, threshold: float) -> npt.NDArray[np.int64]:
        """Return on the grid how many units reach a threshold on d."""
        return self._grid(lambda r: r[layer, self.scenario].count(threshold)).astype(np.int64)

    def flip_rate(self) -> Floats:
        """Return on the grid the share of images whose predicted class changes.

        Raises
        ------
        KeyError
            If the logits were not probed.
        """
        return self._grid(lambda report: report.impact[self.scenario].flip_rate)

    def _grid(self, measure: Callable[[ProbeReport], float]) -> Floats:
        values = [measure(self.reports[point]) for point in product(*self.vary.values())]
        return np.array(values, np.float64).reshape([len(v) for v in self.vary.values()])

    def table(
        self,
        width: int = 80,
        ascii_only: bool = False,
        color: bool = False,
        units: Sequence[tuple[str, int]] = (),
    ) -> str:
        """Return the surface as text for a terminal, see `Report.table`.

        Parameters
        ----------
        width, ascii_only, color
            What the terminal can show.
        units : sequence of (layer, index), optional
            Units to show the d of beside that of the most differentiable one.
        """
        style = Style(width, ascii_only)
        return rendered(_parts(self, units, style), style, color)

    def plot(self, path: str | Path | None = None, units: Sequence[tuple[str, int]] = ()) -> Any:
        """Draw curves (one property) or heat maps (two), see `Report.plot`.

        Parameters
        ----------
        path : str or path, optional
        units : sequence of (layer, index), optional
            Units to draw, each by itself, beside the most differentiable one.

        Raises
        ------
        SettingsError
            If matplotlib is missing.
        """
        return saved(draw_surface(self, units), path)

    def _figure(self) -> Any:
        return draw_surface(self)

    def _lines(self) -> Iterator[str]:
        varied = " and ".join(self.vary)
        points = count(len(self.reports), "point")
        yield f"{self.model}: {self.scenario} marks by {varied}, {points}"
        for layer in self.layers:
            d = self.differentiability(layer)
            point = list(self.reports)[int(d.argmax())]
            where = point_words(self.vary, point)
            yield f"{layer}: d from {d.min():.3f} to {d.max():.3f}, at {where}"

    def _rows(self) -> Iterator[Row]:
        for point, report in self.reports.items():
            impact = report.impact.get(self.scenario)
            for scores in report:
                unit = scores.strongest()
                yield {
                    **dict(zip(self.vary, map(value_text, point), strict=True)),
                    "layer": scores.layer,
                    "d": unit.differentiability,
                    "unit": unit.label,
                    **{f"d >= {tier:g}": scores.count(tier) for tier in TIERS},
                    "predictions that change": None if impact is None else impact.flip_rate,
                }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: what was varied, and the report at each point."""
        return {
            "model": self.model,
            "scenario": self.scenario,
            "vary": self.vary,
            "reports": [
                {"point": point, "report": report.to_dict()}
                for point, report in self.reports.items()
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write the surface to a JSON file."""
        FORMAT.write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SurfaceReport:
        """Read a surface that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with FORMAT.reading_json(path) as data:
            scenario = str(data["scenario"])
            vary = {str(name): _values(values) for name, values in data["vary"].items()}
            reports = {
                _values(entry["point"]): ProbeReport.from_dict(entry["report"])
                for entry in data["reports"]
            }
            if not reports or set(reports) != set(product(*vary.values())):
                raise ReportError("its points do not match its grid")
            shapes = {tuple((s.layer, len(s.names)) for s in r) for r in reports.values()}
            if len(shapes) > 1 or any(r.scenarios != (scenario,) for r in reports.values()):
                raise ReportError(
                    "its points were probed with different layers, units or scenarios"
                )
            return cls(str(data["model"]), scenario, vary, reports)


def point_words(names: Sequence[str] | Mapping[str, Any], point: Point) -> str:
    """Say which point of a grid: ``size 30, position centre``."""
    return ", ".join(
        f"{name} {value_text(value)}" for name, value in zip(names, point, strict=True)
    )


def value_text(value: Value) -> str:
    """Write a property's value shortly."""
    if isinstance(value, tuple):
        return f"({', '.join(map(value_text, value))})"
    return value if isinstance(value, str) else f"{value:g}"


def _values(values: Sequence[Value]) -> tuple[Value, ...]:
    """Make a sequence that may hold lists, as JSON's do, or NumPy's numbers, into plain tuples."""
    plain = (value.item() if isinstance(value, np.generic) else value for value in values)
    return tuple(tuple(value) if isinstance(value, list) else value for value in plain)


def _parts(
    surface: SurfaceReport, units: Sequence[tuple[str, int]], style: Style
) -> Iterator[RenderableType]:
    report = surface._first
    varied = " and ".join(surface.vary)
    title = f"{printable(surface.model)}: {printable(surface.scenario)} marks by {varied}"
    yield Text(title, style="bold")
    yield Text(printable(f"{report.baseline}; seed {report.seed}; {report.device}"))
    for note in dict.fromkeys(note for r in surface.reports.values() for note in r.notes):
        yield Text(f"Note: {printable(note)}.", style="yellow")
    for layer in surface.layers:
        yield _layer(surface, layer, [index for name, index in units if name == layer], style)
    if report.impact:
        yield _predictions(surface, style)


def _layer(surface: SurfaceReport, layer: str, units: Sequence[int], style: Style) -> Table:
    rows = []
    for point, report in surface.reports.items():
        scores = report[layer, surface.scenario]
        worst = scores.strongest()
        rows.append(
            (
                *_cells(point),
                *(str(scores.count(tier)) for tier in TIERS),
                *(f"{scores.differentiability[unit]:.3f}" for unit in units),
                f"{worst.differentiability:.3f}",
                printable(worst.label, 32),
            )
        )
    chosen = (printable(scores.unit(unit).label, 24) for unit in units)
    columns = (*surface.vary, *TIER_HEADER, *chosen, "max d", "unit")
    title = f"Units of {printable(layer)} by d, of {len(scores.names):,}"
    return table(style, title, columns, rows, words=(len(columns) - 1,))


def _predictions(surface: SurfaceReport, style: Style) -> Table:
    impacts = [report.impact[surface.scenario] for report in surface.reports.values()]
    labelled = any(impact.top1_drop is not None for impact in impacts)
    rows = []
    for point, impact in zip(surface.reports, impacts, strict=True):
        drop = "-" if impact.top1_drop is None else f"{-impact.top1_drop:+.1%}"
        change = f"{impact.flip_rate:.1%}"
        rows.append((*_cells(point), change, *[drop] * labelled, gains(impact)))
    columns = (*surface.vary, "change", *["top-1"] * labelled, "class that gains most")
    return table(style, "Predictions under the mark", columns, rows, words=(len(columns) - 1,))


def _cells(point: Point) -> list[str]:
    return [printable(value_text(value)) for value in point]


_ACROSS = 2  # panels
_WITH_UNITS = {
    "size": "size, pixels at a side of 224",
    "opacity": "opacity, 0 to 1",
    "length": "length, symbols",
}
_OF_D = (0.5, 1.0)  # the scale of d; what is counted begins at 0


def draw_surface(surface: SurfaceReport, units: Sequence[tuple[str, int]] = ()) -> Any:
    """Draw curves over one property, or heat maps over two."""
    panels = _panels(surface, units)
    rows = -(-len(panels) // _ACROSS)
    figure = new_figure(4.4 * _ACROSS, 3.0 * rows + 0.4)
    varied = " and ".join(surface.vary)
    figure.suptitle(f"{shortened(surface.model)}: {shortened(surface.scenario)} marks by {varied}")
    axes = figure.subplots(rows, _ACROSS, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        axis.set_title(panel.title, fontsize=10)
        if len(surface.vary) == 1:
            _draw_curves(axis, surface, panel)
        else:
            _draw_map(figure, axis, surface, panel)
    for axis in axes[len(panels) :]:
        axis.remove()
    if len(surface.vary) == 1:
        legend_below(figure, axes[: len(panels)])
    return figure


class _Panel(NamedTuple):
    title: str
    curves: dict[str, Floats]  # one where two properties are varied
    of_d: bool = False

    @property
    def measure(self) -> str:
        """What the vertical axis shows."""
        return "d" if self.of_d else "predictions, %" if "%" in self.title else "units"


def _panels(surface: SurfaceReport, units: Sequence[tuple[str, int]]) -> list[_Panel]:
    """Say what each panel shows: d, numbers of units, changed predictions."""
    panels: list[_Panel] = []
    for layer in surface.layers:
        scores = surface._first[layer, surface.scenario]
        d = {"largest d": surface.differentiability(layer)}
        for index in (index for name, index in units if name == layer):
            name = f"d of {shortened(scores.unit(index).label)}"
            d[name] = surface.differentiability(layer, index)
        counts = {f"d ≥ {tier:g}": surface.counts(layer, tier).astype(np.float64) for tier in TIERS}
        if len(surface.vary) == 1:
            panels.append(_Panel(f"{layer}: d", d, of_d=True))
            panels.append(_Panel(f"{layer}: number of units", counts))
        else:
            panels += [_Panel(f"{layer}: {name}", {name: grid}, True) for name, grid in d.items()]
            name, grid = next(iter(counts.items()))
            panels.append(_Panel(f"{layer}: units with {name}", {name: grid}))
    if surface._first.impact:
        changed = {"change": 100 * surface.flip_rate()}
        panels.append(_Panel("predictions that change, %", changed))
    return panels


def _draw_curves(axis: Any, surface: SurfaceReport, panel: _Panel) -> None:
    ((name, values),) = surface.vary.items()
    numeric = all(isinstance(value, Real) for value in values)
    places = values if numeric else range(len(values))
    tiers = not panel.of_d and len(panel.curves) == len(TIERS)
    colors = SHADES if tiers else SERIES
    for (label, curve), color in zip(panel.curves.items(), cycle(colors), strict=False):
        axis.plot(places, curve, "o-", color=color, markersize=4, label=label)
    if panel.of_d:
        label = f"usual threshold, {TIERS[-1]:g}"
        axis.axhline(TIERS[-1], color=ALERT, linewidth=1, linestyle="--", label=label)
        axis.set_ylim(_OF_D[0] - 0.01, _OF_D[1] + 0.01)
    else:
        axis.set_ylim(bottom=0)
    if not numeric:
        axis.set_xticks(places, _ticks(values), fontsize=7, rotation=30)
    axis.set_xlabel(_WITH_UNITS.get(name, name))
    axis.set_ylabel(panel.measure)
    axis.grid(color=LINE, alpha=0.3)


def _ticks(values: Sequence[Value]) -> list[str]:
    return [shortened(value_text(value)) for value in values]


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
    axis.set_xticks(range(len(columns)), _ticks(columns), fontsize=8)
    axis.set_yticks(range(len(rows)), _ticks(rows), fontsize=8)
    axis.set_xlabel(_WITH_UNITS.get(across, across))
    axis.set_ylabel(_WITH_UNITS.get(down, down))
    figure.colorbar(image, ax=axis, label=panel.measure)
