"""Words and numbers, the same in every report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized

from pytest_watermark_guard.reports.controls import control_columns, control_scores
from pytest_watermark_guard.reports.early_stop import EarlyStop
from pytest_watermark_guard.reports.impact import Impact
from pytest_watermark_guard.reports.names import printable as printable
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import TIERS, SensitiveUnit


def count(number: int, noun: str) -> str:
    """Return ``1 unit``, ``1,280 units``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def and_more(items: Sized, shown: int) -> str:
    """Return `` and 3 more`` for a list that is cut, else nothing."""
    return f" and {len(items) - shown:,} more" if len(items) > shown else ""


def listed(words: Iterable[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def reaction(unit: SensitiveUnit) -> str:
    """Say which unit reacts to which scenario, and how strongly."""
    return printable(f"{unit.layer} {unit.label}, {unit.scenario}, d {unit.differentiability:.3f}")


def gains(impact: Impact) -> str:
    """Say which class gains most by the mark; ``-`` if no prediction changes."""
    if impact.gains_name is None:
        return "-"
    return f"{printable(impact.gains_name, NAME)} +{impact.gains_share:.1%} of images"


NAME = 60
"""Most characters of a name in a table."""

TIER_HEADER = tuple(f">={tier:g}".replace("0.", ".") for tier in TIERS)
"""Columns for the numbers of units with d at or above each tier."""

UNIT_HEADER = ("layer", "unit", "scenario", "reaction", "A", "95 % interval", "d")


def most_differentiable(report: ProbeReport, number: int) -> list[SensitiveUnit]:
    """Return the units with the highest d in any layer and scenario, highest first."""
    units = (scores.unit(index) for scores in report for index in scores.ranking()[:number])
    return sorted(units, key=lambda unit: -unit.differentiability)[:number]


def unit_table(report: ProbeReport, units: Sequence[SensitiveUnit]) -> list[tuple[str, ...]]:
    """Return the rows of a table of units, the header first."""
    columns = control_columns([report])
    rows = ((*unit_row(unit), *control_areas(report, unit, columns)) for unit in units)
    return [(*UNIT_HEADER, *columns.values()), *rows]


def control_areas(
    report: ProbeReport, unit: SensitiveUnit, columns: Iterable[str]
) -> tuple[str, ...]:
    """Return a unit's A in the columns of controls; ``-`` where there is none."""
    controls = control_scores(report, unit.layer, unit.scenario)
    return tuple(
        f"{controls[key].auroc[unit.index]:.3f}" if key in controls else "-" for key in columns
    )


def decision(report: ProbeReport) -> str | None:
    """Say how many images a gate's verdict took, if it was free to stop early."""
    early = report.early_stop
    if early is None:
        return None
    if len(early.each) > 1:
        return _decisions(early)
    taken = next((verdict.n_images for verdict in early.each.values()), report.n_images)
    if early.verdict is None:
        return (
            f"Undecided at error probability {early.error:g} to the last image: decided by the "
            f"scores of all {early.n_available}."
        )
    shared = " for the verdicts on all layers and scenarios together" if early.each else ""
    return (
        f"Decided by {taken} of {early.n_available} images, at error probability "
        f"{early.error:g}{shared}."
    )


def _decisions(early: EarlyStop) -> str:
    taken = [verdict.n_images for verdict in early.each.values() if verdict.verdict is not None]
    undecided = [place for place, verdict in early.each.items() if verdict.verdict is None]
    sentences = []
    if taken:
        span = f"{min(taken)} to {max(taken)}" if min(taken) < max(taken) else f"{taken[0]}"
        sentences.append(
            f"Verdicts took {span} of {early.n_available} images, at error probability "
            f"{early.error:g} for all of them."
        )
    if undecided:
        places = listed(f"{layer} under {scenario}" for layer, scenario in undecided)
        sentences.append(
            f"Undecided to the last image, and so decided by the scores of all "
            f"{early.n_available}: {printable(places)}."
        )
    return " ".join(sentences)


def unit_row(unit: SensitiveUnit, width: int = NAME) -> tuple[str, ...]:
    """Describe a unit in the columns of `UNIT_HEADER`."""
    return (
        printable(unit.layer, width),
        printable(unit.label, width),
        printable(unit.scenario, width),
        "fires on" if unit.fires else "silenced",
        f"{unit.auroc:.3f}",
        f"{unit.low:.3f}-{unit.high:.3f}",
        f"{unit.differentiability:.3f}",
    )
