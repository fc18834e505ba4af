"""Verifications of ownership, for the terminal (``pytest --wm-report``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.ownership.report import OwnershipReport
from pytest_watermark_guard.reporting.drawing import Style, drawn, table
from pytest_watermark_guard.reporting.text import printable

_COLUMNS = ("model", "asked for", "p-value", "pairs", "chosen", "decoy", "difference", "queries")


def render_ownership(
    reports: Sequence[OwnershipReport],
    *,
    width: int = 80,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """Draw one table of all verifications, and under it what each of them says.

    Parameters
    ----------
    reports : sequence of OwnershipReport
    width, color, ascii_only
        As for `render_reports`.

    Returns
    -------
    str
        Lines, the last one ended.
    """
    style = Style(width, ascii_only)
    return drawn(_parts(reports, style), style, color)


def _parts(reports: Sequence[OwnershipReport], style: Style) -> Iterator[RenderableType]:
    yield Text("Ownership\n", style="bold")
    rows = []
    for report in reports:
        rows.append(
            (
                printable(report.model),
                report.access,
                f"{report.p_value:.2g}",
                f"{report.agreeing}/{report.pairs}",
                f"{report.chosen:.3f}",
                f"{report.decoy:.3f}",
                f"{report.effect:+.3f}",
                f"{report.queries:,}",
            )
        )
        rows += [
            (f"  null: {printable(null.name)}", report.access, f"{null.p_value:.2g}", "", "", "",
             f"{null.effect:+.3f}", f"{report.queries:,}")
            for null in report.nulls
        ]  # fmt: skip
    yield table(style, "", _COLUMNS, rows, words=(0, 1))
    for report in reports:
        yield Text(f"{printable(report.sentence())}\n")
