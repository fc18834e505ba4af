"""A sensitivity surface as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.exploring.surface import shown
from pytest_watermark_guard.report import TIERS
from pytest_watermark_guard.reporting.drawing import Style, drawn, table
from pytest_watermark_guard.reporting.text import printable

if TYPE_CHECKING:
    from pytest_watermark_guard.exploring.surface import SurfaceReport


def render_surface(
    surface: SurfaceReport,
    units: Sequence[tuple[str, int]] = (),
    *,
    width: int = 80,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """Draw the tables of a surface; returns lines, the last one ended."""
    style = Style(width, ascii_only)
    return drawn(_parts(surface, units, style), style, color)


def _parts(
    surface: SurfaceReport, units: Sequence[tuple[str, int]], style: Style
) -> Iterator[RenderableType]:
    report = next(iter(surface.reports.values()))
    varied = " and ".join(surface.vary)
    title = f"{printable(surface.model)}: {printable(surface.scenario)} marks by {varied}"
    yield Text(title, style="bold")
    yield Text(printable(f"{report.baseline}; seed {report.seed}; {report.device}"))
    for note in dict.fromkeys(note for r in surface.reports.values() for note in r.notes):
        yield Text(f"Note: {printable(note)}.", style="yellow")
    for layer in surface.layers:
        yield Text()
        yield _layer(surface, layer, [unit for of, unit in units if of == layer], style)
    if report.impact:
        yield Text()
        yield _predictions(surface, style)


def _layer(
    surface: SurfaceReport, layer: str, units: Sequence[int], style: Style
) -> RenderableType:
    scores = next(iter(surface.reports.values()))[layer, surface.scenario]
    rows = []
    for point, report in surface.reports.items():
        here = report[layer, surface.scenario]
        worst = here.unit(here.ranking()[0])
        rows.append(
            (
                *_cells(point),
                *(str(here.count(tier)) for tier in TIERS),
                *(f"{here.differentiability[unit]:.3f}" for unit in units),
                f"{worst.differentiability:.3f}",
                printable(worst.label, 32),
            )
        )
    tiers = (f">={tier:g}".replace("0.", ".") for tier in TIERS)
    chosen = (printable(scores.unit(unit).label, 24) for unit in units)
    columns = (*surface.vary, *tiers, *chosen, "max d", "unit")
    title = f"Units of {printable(layer)} by d, of {len(scores.names):,}"
    return table(style, title, columns, rows, words=(len(columns) - 1,))


def _predictions(surface: SurfaceReport, style: Style) -> RenderableType:
    impacts = {point: r.impact[surface.scenario] for point, r in surface.reports.items()}
    labelled = any(impact.top1_drop is not None for impact in impacts.values())
    rows = []
    for point, impact in impacts.items():
        drop = "-" if impact.top1_drop is None else f"{-impact.top1_drop:+.1%}"
        gains = "-"
        if impact.gains_name is not None:
            gains = f"{printable(impact.gains_name, 24)} +{impact.gains_share:.1%} of images"
        change = f"{impact.flip_rate:.1%}"
        rows.append((*_cells(point), change, *[drop] * labelled, gains))
    columns = (*surface.vary, "change", *["top-1"] * labelled, "class that gains most")
    return table(style, "Predictions under the mark", columns, rows, words=(len(columns) - 1,))


def _cells(point: tuple[object, ...]) -> list[str]:
    return [printable(shown(value)) for value in point]
