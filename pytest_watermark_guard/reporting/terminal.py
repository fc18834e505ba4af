"""Tables for the terminal (``pytest --wm-report``), drawn by rich."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pytest_watermark_guard.report import TIERS, ProbeReport
from pytest_watermark_guard.reporting.text import UNIT_HEADER, count, printable, unit_row

WORST = 10


def render_reports(
    reports: Sequence[ProbeReport],
    threshold: float,
    *,
    width: int = 80,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """Draw the tables of several probes.

    Parameters
    ----------
    reports : sequence of ProbeReport
    threshold : float
        Units with d at or above it are shown as sensitive.
    width : int, default 80
        Columns of the terminal.
    color : bool, default False
        Whether to use ANSI colours.
    ascii_only : bool, default False
        For terminals that cannot show box-drawing characters.

    Returns
    -------
    str
        Lines, the last one ended.
    """
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for index, report in enumerate(reports):
        if index:
            console.print()
        for part in _report(report, threshold, box.ASCII if ascii_only else box.SIMPLE_HEAD):
            console.print(part, soft_wrap=False)
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
    # One character for another, so that columns stay in line.
    return text.replace("…", ".").encode("ascii", "replace").decode() if ascii_only else text


def _report(report: ProbeReport, threshold: float, lines: box.Box) -> Iterator[RenderableType]:
    yield Text(printable(report.model), style="bold")
    yield Text(
        f"{printable(report.baseline)}; seed {report.seed}; {report.device}, {report.precision}; "
        f"{printable(report.preprocessing)}"
    )
    for note in report.notes:
        yield Text(f"Note: {printable(note)}.", style="yellow")
    yield Text()
    yield _counts(report, lines)
    if report.impact:
        yield _impact(report, lines)
    yield _worst(report, threshold, lines)
    yield _verdict(report, threshold)


def _verdict(report: ProbeReport, threshold: float) -> Text:
    sensitive = len(report.sensitive(threshold))
    if not sensitive:
        return Text(f"No unit reaches d = {threshold:g}.", style="green")
    verb = "reaches" if sensitive == 1 else "reach"
    return Text(f"{count(sensitive, 'unit')} {verb} d = {threshold:g}.", style="red")


def _counts(report: ProbeReport, lines: box.Box) -> Table:
    tiers = (f">={tier:g}".replace("0.", ".") for tier in TIERS)
    columns = ("layer", "script", "units", *tiers, "max d", "unit")
    table = _table(lines, columns, numbers=range(2, 8), title="Units by d, and the highest")
    for scores in report:
        d = scores.differentiability
        worst = scores.unit(scores.ranking()[0])
        row = (
            printable(scores.layer, 20),
            printable(scores.scenario, 20),
            str(len(d)),
            *(str(scores.count(tier)) for tier in TIERS),
            f"{worst.differentiability:.3f}",
            printable(worst.label, 30),
        )
        table.add_row(*map(Text, row))
    return table


def _impact(report: ProbeReport, lines: box.Box) -> Table:
    labelled = any(impact.top1_baseline is not None for impact in report.impact.values())
    columns = ["script", "change", "class that gains most"]
    columns += ["top-1", "marked"] if labelled else []
    table = _table(lines, columns, numbers=(1, 3, 4), title="Predictions under the mark")
    for scenario, impact in report.impact.items():
        gains = "-"
        if impact.gains_name is not None:
            gains = f"{printable(impact.gains_name, 24)} +{impact.gains_share:.1%} of images"
        row = [printable(scenario, 24), f"{impact.flip_rate:.1%}", gains]
        if labelled:
            row += [
                "-" if share is None else f"{share:.1%}"
                for share in (impact.top1_baseline, impact.top1_marked)
            ]
        table.add_row(*map(Text, row))
    return table


def _worst(report: ProbeReport, threshold: float, lines: box.Box) -> Table:
    units = sorted(
        (scores.unit(index) for scores in report for index in scores.ranking()[:WORST]),
        key=lambda unit: -unit.differentiability,
    )
    table = _table(lines, UNIT_HEADER, numbers=(4, 6), title="Most differentiable units")
    for unit in units[:WORST]:
        sensitive = unit.differentiability >= threshold
        table.add_row(*map(Text, unit_row(unit)), style="red" if sensitive else None)
    return table


def _table(lines: box.Box, columns: Sequence[str], numbers: Sequence[int], title: str) -> Table:
    table = Table(
        box=lines, title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for index, column in enumerate(columns):
        # Where a terminal is narrow, names are cut and numbers never.
        if index in numbers:
            table.add_column(column, justify="right", no_wrap=True, min_width=max(4, len(column)))
        else:
            table.add_column(column, overflow="ellipsis", no_wrap=True)
    return table
