"""A sweep as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.reporting.drawing import Style, drawn, table
from pytest_watermark_guard.reporting.text import count, listed, printable

if TYPE_CHECKING:
    from pytest_watermark_guard.mitigation.sweep_report import SweepReport, SweptHead


def render_sweep(
    sweep: SweepReport, *, width: int = 80, color: bool = False, ascii_only: bool = False
) -> str:
    """Draw the tables of a sweep; returns lines, the last one ended."""
    style = Style(width, ascii_only)
    return drawn(_parts(sweep, style), style, color)


def _parts(sweep: SweepReport, style: Style) -> Iterator[RenderableType]:
    yield Text(f"Heads on {printable(sweep.model)}", style="bold")
    masked = listed(map(printable, sweep.scenarios))
    yield Text(
        f"{count(sweep.n_train, 'training image')}, {sweep.n_validation:,} for validation, "
        f"{count(len(sweep.classes), 'class').replace('classs', 'classes')}; features ranked by "
        f"{masked}; seed {sweep.seed}."
    )
    for note in sweep.notes:
        yield Text(f"Note: {printable(note)}.", style="yellow")
    yield Text()
    heads = [*sweep.heads] + ([sweep.erased] if sweep.erased else [])
    scenarios = list(sweep.heads[0].scores)
    yield table(
        style,
        "Accuracy, and the largest d of the outputs",
        ("alpha", "units", "accuracy", "95 % interval", "change", *map(printable, scenarios)),
        [_accuracy_row(head, scenarios) for head in heads],
        words=(0,),
        red=[head.largest_d >= sweep.threshold or head.costs for head in heads],
    )
    yield Text()
    first = sweep.scenarios[0]
    yield table(
        style,
        f"A of the outputs under {printable(first)}, and predictions that change",
        ("alpha", "lowest", "5 %", "median", "95 %", "highest", "flips", "beyond control"),
        [_spread_row(head, first) for head in heads],
        words=(0,),
    )
    yield Text("\n".join(textwrap.wrap(printable(sweep.advice()), style.width - 1)))


def _called(head: SweptHead) -> str:
    return "erasure" if head.alpha is None else f"{head.alpha:g}"


def _accuracy_row(head: SweptHead, scenarios: list[str]) -> tuple[str, ...]:
    low, high = head.accuracy_interval
    return (
        _called(head),
        "-" if head.alpha is None else str(head.masked),
        f"{head.accuracy:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{head.change:+.3f}" + ("*" if head.costs else ""),
        *(f"{head.d(name):.3f}" for name in scenarios),
    )


def _spread_row(head: SweptHead, scenario: str) -> tuple[str, ...]:
    areas = sorted(head.scores[scenario].auroc.tolist())

    def quantile(share: float) -> str:
        return f"{areas[round(share * (len(areas) - 1))]:.3f}"

    flips, beyond = head.flips[scenario], head.flips_beyond_control(scenario)
    return (
        _called(head),
        *(quantile(share) for share in (0, 0.05, 0.5, 0.95, 1)),
        "-" if flips is None else f"{flips:.1%}",
        "-" if beyond is None else f"{beyond:+.1%}",
    )
