"""Tables for the terminal (``pytest --wm-report``), rendered by rich."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from pytest_watermark_guard.reports.controls import (
    control_columns,
    control_legend,
    control_sentences,
)
from pytest_watermark_guard.reports.drawing import Style, rendered, table
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import TIERS, SensitiveUnit
from pytest_watermark_guard.reports.text import (
    TIER_HEADER,
    UNIT_HEADER,
    and_more,
    control_areas,
    count,
    decision,
    gains,
    most_differentiable,
    printable,
    unit_row,
)
from pytest_watermark_guard.reports.verdict import Verdict

WORST = 10
_TESTS = 3  # that are named of those that made a probe


def render_reports(
    entries: Sequence[tuple[ProbeReport, Sequence[Verdict]]],
    threshold: float,
    *,
    tests: Sequence[Sequence[str]] = (),
    width: int = 80,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """Draw the tables of several probes for a terminal, as ``pytest --wm-report`` does.

    Parameters
    ----------
    entries : sequence of (ProbeReport, sequence of Verdict)
        Each probe with the verdicts of the gates that used it.
    threshold : float
        For probes that no gate used: units with d at or above it are red.
    tests : sequence of (sequence of str), optional
        For each probe, the tests that made it.
    width, color, ascii_only
        What the terminal can show.

    Returns
    -------
    str
        Lines, the last one ended.
    """
    style = Style(width, ascii_only)
    parts: list[RenderableType] = []
    unknown: list[Sequence[str]] = [()] * (len(entries) - len(tests))
    for (report, verdicts), makers in zip(entries, [*tests, *unknown], strict=True):
        parts += [Text()] * bool(parts)
        parts += _report(report, verdicts, makers, threshold, style)
    return rendered(parts, style, color)


def _report(
    report: ProbeReport,
    verdicts: Sequence[Verdict],
    tests: Sequence[str],
    threshold: float,
    style: Style,
) -> Iterator[RenderableType]:
    yield Text(printable(report.model), style="bold")
    if tests:
        shown = printable(", ".join(tests[:_TESTS]))
        yield Text(f"Made by {shown}{and_more(tests, _TESTS)}.")
    yield Text(
        printable(
            f"{report.extent}; seed {report.seed}; {report.device}, {report.precision}; "
            f"{report.preprocessing}"
        )
    )
    for note in report.notes:
        yield Text(f"Note: {printable(note)}.", style="yellow")
    yield _counts(report, style)
    if report.impact:
        yield _impact(report, style)
    yield _worst(report, min((v.threshold for v in verdicts), default=threshold), style)
    if columns := control_columns([report]):
        yield _controls(report, columns, style)
        yield Text(control_legend(columns))
        yield from (Text(printable(sentence)) for sentence in control_sentences(report))
    if not verdicts:
        sensitive = report.sensitive(threshold)
        words = _reach(sensitive, threshold)
        yield Text(f"{words[0].upper()}{words[1:]}.", style="red" if sensitive else "green")
    told: set[str] = set()
    for text in (text for verdict in verdicts for text in _verdict(verdict)):
        if text.plain not in told:  # gates may share what they allow
            told.add(text.plain)
            yield text
    if (decided := decision(report)) is not None:
        yield Text(decided)


_STYLES = {"passed": "green", "warned": "yellow"}


def _verdict(verdict: Verdict) -> Iterator[Text]:
    words = verdict.grounds()
    for word, units in (("allowed", verdict.allowed), ("known", verdict.known.passed)):
        words += f", {_distinct([unit for unit, _ in units])} {word}" if units else ""
    style = _STYLES.get(verdict.outcome, "red")
    yield Text(f"Gate {verdict.outcome}: {words}.", style=style)
    for line in verdict.accepted_lines():
        yield Text(line, style="yellow")


def _reach(units: Sequence[SensitiveUnit], threshold: float) -> str:
    number = _distinct(units)
    verb = "reaches" if number <= 1 else "reach"
    return f"{count(number, 'unit') if number else 'no unit'} {verb} d = {threshold:g}"


def _distinct(units: Sequence[SensitiveUnit]) -> int:
    """Count units once, however many scenarios they react to."""
    return len({(unit.layer, unit.index) for unit in units})


def _counts(report: ProbeReport, style: Style) -> Table:
    interval = ["95 %"] * any(scores.largest for scores in report)
    columns = ("layer", "scenario", "units", *TIER_HEADER, "max d", *interval, "unit")
    rows = []
    for scores in report:
        worst = scores.strongest()
        rows.append(
            (
                printable(scores.layer),
                printable(scores.scenario),
                str(len(scores.names)),
                *(str(scores.count(tier)) for tier in TIERS),
                f"{worst.differentiability:.3f}",
                *([_ends(scores.largest)] * len(interval)),
                printable(worst.label),
            )
        )
    return table(style, "Units by d, and the highest", columns, rows, (0, 1, len(columns) - 1))


def _ends(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return "-"
    return "-".join(f"{end:.2f}".removeprefix("0") for end in interval)


def _impact(report: ProbeReport, style: Style) -> Table:
    labelled = any(impact.top1_baseline is not None for impact in report.impact.values())
    controlled = any(impact.control_flip_rate is not None for impact in report.impact.values())
    columns = ["scenario", "change"] + ["control"] * controlled + ["class that gains most"]
    columns += ["top-1", "marked"] if labelled else []
    gaps = {name: impact.gains_gap for name, impact in report.impact.items()}
    gapped = any(gap is not None for gap in gaps.values())
    columns += ["its gap"] * gapped
    rows = []
    for scenario, impact in report.impact.items():
        row = [printable(scenario), f"{impact.flip_rate:.1%}"]
        row += [_share(impact.control_flip_rate)] * controlled + [gains(impact)]
        if labelled:
            row += map(_share, (impact.top1_baseline, impact.top1_marked))
        if gapped:
            gap = gaps[scenario]
            row.append("-" if gap is None else f"{gap:+.1%}")
        rows.append(row)
    words = (0, columns.index("class that gains most"))
    return table(style, "Predictions under the mark", columns, rows, words)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _worst(report: ProbeReport, threshold: float, style: Style) -> Table:
    units = most_differentiable(report, WORST)
    return table(
        style,
        "Most differentiable units",
        UNIT_HEADER,
        [unit_row(unit) for unit in units],
        words=(0, 1, 2),
        red=[unit.differentiability >= threshold for unit in units],
    )


def _controls(report: ProbeReport, columns: Mapping[str, str], style: Style) -> Table:
    # A table of its own: beside the others its columns would not fit into 80.
    rows = [
        (
            printable(unit.layer),
            printable(unit.label),
            printable(unit.scenario),
            f"{unit.auroc:.3f}",
            *control_areas(report, unit, columns),
        )
        for unit in most_differentiable(report, WORST)
    ]
    header = ("layer", "unit", "scenario", "A", *columns.values())
    return table(style, "Their controls", header, rows, words=(0, 1, 2))
