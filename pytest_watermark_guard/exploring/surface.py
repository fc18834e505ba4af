"""Sensitivity as a function of the mark: its size, opacity, place, length or colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from pytest_watermark_guard.errors import ScenarioError, SettingsError
from pytest_watermark_guard.models.near_misses import AnyModel, name_of
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.probe import probe
from pytest_watermark_guard.reports.surface import SurfaceReport, Value, _values, point_words
from pytest_watermark_guard.watermarks.scenarios import Scenario, resolve_scenarios

PROPERTIES = ("size", "opacity", "position", "length", "color")
"""Of a `Scenario`, those that can be varied."""


def surface(
    model: AnyModel,
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
    default_name = name_of(model)
    name = arguments.pop("name", None) or default_name
    reports = {
        point: probe(
            model, images, (marked,), name=f"{name} ({point_words(grid, point)})", **arguments
        )
        for point, marked in points.items()
    }
    return SurfaceReport(name, base.name, grid, reports)


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
