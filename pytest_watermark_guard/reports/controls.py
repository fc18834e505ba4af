"""What controls say of units: marks that are no text, against clean images and against the mark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import Scores, SensitiveUnit
from pytest_watermark_guard.watermarks.streams import BLOBS, STROKES

AGAINST = "control"
COLUMNS = {AGAINST: "A/control", STROKES: "A scrambled", BLOBS: "A blobs"}
"""Heads of tables' columns with a unit's A, by what is scored."""

_MEANINGS = {
    AGAINST: "A/control: how often a marked image scores above one with its strokes scrambled",
    STROKES: "A scrambled: how often that one scores above a clean one",
    BLOBS: "A blobs: how often one with as much ink without strokes does",
}


def control_scores(report: ProbeReport, layer: str, scenario: str) -> dict[str, Scores]:
    """Return what was scored with controls, by the keys of `COLUMNS`."""
    found = {kind: report.controls_alone.get((layer, scenario, kind)) for kind in (STROKES, BLOBS)}
    found = {AGAINST: report.controls.get((layer, scenario)), **found}
    return {key: scores for key, scores in found.items() if scores is not None}


def control_columns(reports: Iterable[ProbeReport]) -> dict[str, str]:
    """Return those of `COLUMNS` for which some report has numbers."""
    present = {
        key
        for report in reports
        for scores in report
        for key in control_scores(report, scores.layer, scores.scenario)
    }
    return {key: head for key, head in COLUMNS.items() if key in present}


def control_legend(columns: Iterable[str]) -> str:
    """Say what the columns hold; empty for none."""
    meanings = [_MEANINGS[key] for key in columns]
    return f"{'; '.join(meanings)}." if meanings else ""


def control_sentences(report: ProbeReport) -> Iterator[str]:
    """Say for each scenario how much of the strongest reaction comes without any text."""
    for scenario in report.scenarios:
        alone = {
            scores.layer: {
                kind: found
                for kind, found in control_scores(report, scores.layer, scenario).items()
                if kind != AGAINST
            }
            for scores in report
            if scores.scenario == scenario
        }
        units = [report[layer, scenario].strongest() for layer, found in alone.items() if found]
        if units:
            unit = max(units, key=lambda unit: unit.differentiability)
            found = alone[unit.layer]
            yield _sentence(unit, {kind: found[kind].unit(unit.index) for kind in found})


def _sentence(unit: SensitiveUnit, alone: dict[str, SensitiveUnit]) -> str:
    sources = {STROKES: "its strokes, scrambled", BLOBS: "blobs of as much ink"}
    areas = [f"{found.auroc:.3f} by {sources[kind]}" for kind, found in alone.items()]
    start = (
        f"{unit.scenario}: {unit.layer} {unit.label} has A = {unit.auroc:.3f} by the mark, "
        f"{' and '.join(areas)}"
    )
    if unit.low <= 0.5 <= unit.high:
        return f"{start}; it does not react to the mark beyond chance."
    words = {STROKES: "scrambled strokes", BLOBS: "blobs"}
    shares = [
        f"{words[kind]} alone do {max(0.0, (found.auroc - 0.5) / (unit.auroc - 0.5)):.0%}"
        for kind, found in alone.items()
    ]
    return f"{start}; so {' and '.join(shares)} of what the mark does to it (A - 0.5)."
