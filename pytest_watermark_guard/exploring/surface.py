"""Sensitivity as a function of the mark: its size, opacity, place, length or colour."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pytest_watermark_guard.context import current_run
from pytest_watermark_guard.documents import read_document, write_document
from pytest_watermark_guard.errors import ReportError, ScenarioError, SettingsError
from pytest_watermark_guard.probing import probe
from pytest_watermark_guard.report import ProbeReport
from pytest_watermark_guard.watermarks.scenarios import Scenario, resolve_scenarios

KIND = "surface"
PROPERTIES = ("size", "opacity", "position", "length", "color")
"""Of a `Scenario`, those that can be varied."""

Floats = npt.NDArray[np.float64]
Value = Any  # number, name, or tuple of numbers: what a Scenario takes
Point = tuple[Value, ...]


@dataclass(frozen=True, eq=False)
class SurfaceReport:
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
        return next(iter(self.reports.values())).layers

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

        def of(report: ProbeReport) -> float:
            d = report[layer, self.scenario].differentiability
            return float(d.max() if unit is None else d[unit])

        return self._grid(of)

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

    def _grid(self, of: Any) -> Floats:
        values = [of(self.reports[point]) for point in product(*self.vary.values())]
        return np.array(values, np.float64).reshape([len(v) for v in self.vary.values()])

    def table(
        self, units: Sequence[tuple[str, int]] = (), width: int = 80, ascii_only: bool = False
    ) -> str:
        """Return the surface as text for a terminal.

        Parameters
        ----------
        units : sequence of (layer, index), optional
            Units to show the d of beside that of the most differentiable one.
        width, ascii_only
            What the terminal can show.
        """
        from pytest_watermark_guard.reporting.surface_table import render_surface

        return render_surface(self, units, width=width, ascii_only=ascii_only)

    def plot(self, path: str | Path, units: Sequence[tuple[str, int]] = ()) -> None:
        """Draw curves (one property) or heat maps (two) into a PNG, PDF or SVG; needs matplotlib.

        Parameters
        ----------
        path : str or path
        units : sequence of (layer, index), optional
            Units to draw, each by itself, beside the most differentiable one.

        Raises
        ------
        SettingsError
            If matplotlib is missing.
        """
        from pytest_watermark_guard.reporting.surface_figure import draw_surface

        draw_surface(self, Path(path), units)

    def save(self, path: str | Path) -> None:
        """Write the surface to a JSON file."""
        data = {
            "model": self.model,
            "scenario": self.scenario,
            "vary": self.vary,
            "reports": [
                {"point": point, "report": json.loads(report.to_json())}
                for point, report in self.reports.items()
            ],
        }
        write_document(path, KIND, data)

    @classmethod
    def load(cls, path: str | Path) -> SurfaceReport:
        """Read a surface that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with read_document(path, KIND) as data:
            scenario = str(data["scenario"])
            vary = {str(name): _values(found) for name, found in data["vary"].items()}
            reports = {
                _values(entry["point"]): ProbeReport.from_json(json.dumps(entry["report"]))
                for entry in data["reports"]
            }
            if not reports or set(reports) != set(product(*vary.values())):
                raise ReportError(f"{str(path)!r} holds no surface: its points are not its grid's")
            shapes = {tuple((s.layer, len(s.names)) for s in r) for r in reports.values()}
            if len(shapes) > 1 or any(r.scenarios != (scenario,) for r in reports.values()):
                raise ReportError(f"{str(path)!r} holds no surface: its points were probed unlike")
            return cls(str(data["model"]), scenario, vary, reports)


def surface(
    model: nn.Module | str,
    images: Any = None,
    scenario: str | Scenario = "chinese",
    vary: Mapping[str, Sequence[Value]] | None = None,
    **arguments: Any,
) -> SurfaceReport:
    """Probe one model with a mark of several sizes, opacities, places, lengths or colours.

    Every image carries the same string throughout and, unless its length or position is varied, at
    the same place (as a share of the room that the ink leaves), so that points differ by what is
    varied and not by chance. With the cache, the images without a mark are run once.

    Parameters
    ----------
    model : Module or str
    images : optional
    scenario : str or Scenario, default "chinese"
        What is varied; its other properties stay.
    vary : mapping of str to sequence, default ``{"size": (10, 20, 30)}``
        Values of one or two of ``size``, ``opacity``, ``position``, ``length`` and ``color``, as
        `Scenario` takes them. Two span a grid.
    **arguments
        The other arguments of `probe`, all but ``scenarios``.

    Returns
    -------
    SurfaceReport

    Raises
    ------
    SettingsError
        If `vary` names no property, more than two, another one, or a value twice.
    ScenarioError
        If a value cannot be drawn, or the scenario is a folder of marked copies.
    WatermarkGuardError
        As `probe`.

    Examples
    --------
    >>> found = wm.surface(  # doctest: +SKIP
    ...     model, "photos/", vary={"size": (10, 20, 30), "opacity": (0.25, 0.5, 1.0)}
    ... )
    >>> found.differentiability("features")  # 3 sizes × 3 opacities  # doctest: +SKIP
    """
    if "scenarios" in arguments:
        raise SettingsError("surface: scenarios is what it varies; pass scenario=, a single one")
    grid = _checked({"size": (10, 20, 30)} if vary is None else vary)
    (base,) = resolve_scenarios((scenario,), current_run().scenarios)
    if not isinstance(base, Scenario):
        raise ScenarioError(
            f"scenario {base.name!r} is a folder of marked copies: it has no size or place to vary"
        )
    # All of them first: a wrong value is said before minutes of probing.
    points = {
        point: replace(base, **dict(zip(grid, point, strict=True)))
        for point in product(*grid.values())
    }
    named = arguments.pop("name", None) or (model if isinstance(model, str) else _name(model))
    reports = {
        point: probe(model, images, (marked,), name=f"{named} ({told(grid, point)})", **arguments)
        for point, marked in points.items()
    }
    return SurfaceReport(named, base.name, grid, reports)


def told(names: Sequence[str] | Mapping[str, Any], point: Point) -> str:
    """Say which point of a grid: ``size 30, position centre``."""
    return ", ".join(f"{name} {shown(value)}" for name, value in zip(names, point, strict=True))


def shown(value: Value) -> str:
    """Write a property's value shortly."""
    if isinstance(value, tuple):
        return f"({', '.join(map(shown, value))})"
    return value if isinstance(value, str) else f"{value:g}"


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _checked(vary: Mapping[str, Sequence[Value]]) -> dict[str, tuple[Value, ...]]:
    if not isinstance(vary, Mapping) or not 1 <= len(vary) <= 2:
        raise SettingsError(
            "surface: vary one property or two, for instance vary={'size': (10, 20, 30)}, "
            f"got {vary!r}"
        )
    grid = {}
    for name, values in vary.items():
        if name not in PROPERTIES:
            raise SettingsError(f"surface: cannot vary {name!r}, only {', '.join(PROPERTIES)}")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise SettingsError(f"surface: {name} takes a sequence of values, got {values!r}")
        grid[name] = _values(values)
        if len(set(grid[name])) < len(values):
            raise SettingsError(f"surface: {name} has a value twice, got {values!r}")
    return grid


def _values(values: Sequence[Value]) -> tuple[Value, ...]:
    """Make a sequence that may hold lists, as JSON's do, or NumPy's numbers, into plain tuples."""
    plain = (value.item() if isinstance(value, np.generic) else value for value in values)
    return tuple(tuple(value) if isinstance(value, list) else value for value in plain)
