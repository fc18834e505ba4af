"""All units of a page's reports, packed for its script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.reports.controls import control_scores
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import Scores, SensitiveUnit
from pytest_watermark_guard.reports.text import most_differentiable, printable

MOST = 300_000  # units; more would make the page slow to open
FIRST = 20  # rows that the page shows before its script does anything
ROWS = 1_000  # that it can show of what is searched


class Judged(NamedTuple):
    """A report on the page, with what its gates make of it."""

    name: str  # the model's, told apart from others of the same name
    report: ProbeReport
    threshold: float  # the lowest of its gates
    failing: frozenset[tuple[str, str, int]]  # (layer, scenario, index) of units that reach it
    accepted: frozenset[tuple[str, str, int]]

    def word(self, unit: SensitiveUnit) -> str:
        """Say what the gates make of a unit."""
        key = unit.layer, unit.scenario, unit.index
        return "reaches" if key in self.failing else "accepted" if key in self.accepted else ""


class Row(NamedTuple):
    """One unit in the table."""

    model: str
    threshold: float
    unit: SensitiveUnit
    word: str
    controls: dict[str, float]  # A by the keys of `reports.controls.COLUMNS`


def first_rows(judged: Sequence[Judged]) -> list[Row]:
    """Return the most differentiable units of all reports."""
    rows = []
    for probe in judged:
        for unit in most_differentiable(probe.report, FIRST):
            controls = {
                key: float(scores.auroc[unit.index])
                for key, scores in control_scores(probe.report, unit.layer, unit.scenario).items()
            }
            rows.append(Row(probe.name, probe.threshold, unit, probe.word(unit), controls))
    return sorted(rows, key=lambda row: -row.unit.differentiability)[:FIRST]


def packed(judged: Sequence[Judged]) -> dict[str, Any]:
    """Pack the units: thousandths of A and its interval as little-endian bytes in base64.

    One block for each layer under each scenario. Where there are more than `MOST` units, the most
    differentiable ones of all.
    """
    names: dict[tuple[str, ...], int] = {}
    series = [(probe, scores) for probe in judged for scores in probe.report]
    sizes = [len(scores.names) for _, scores in series]
    total = sum(sizes)
    kept: list[npt.NDArray[np.intp] | None] = [None] * len(series)
    if total > MOST:
        d = np.concatenate([scores.differentiability for _, scores in series])
        chosen = np.zeros(total, dtype=bool)
        chosen[np.argsort(-d, kind="stable")[:MOST]] = True
        kept = [np.flatnonzero(part) for part in np.split(chosen, np.cumsum(sizes)[:-1])]
    blocks = [_block(*both, names, units) for both, units in zip(series, kept, strict=True)]
    return {
        "names": [[printable(name) for name in group] for group in names],
        "blocks": blocks,
        "total": total,
        "shown": sum(block["count"] for block in blocks),
    }


def _block(
    probe: Judged,
    scores: Scores,
    names: dict[tuple[str, ...], int],
    units: npt.NDArray[np.intp] | None,
) -> dict[str, Any]:
    kept = slice(None) if units is None else units
    low, high = scores.interval()
    key = scores.layer, scores.scenario
    controls = control_scores(probe.report, *key)
    plain = scores.names == tuple(map(str, range(len(scores.names))))
    return {
        "model": printable(probe.name),
        "layer": printable(scores.layer),
        "scenario": printable(scores.scenario),
        "threshold": probe.threshold,
        "names": None if plain else names.setdefault(scores.names, len(names)),
        "count": len(scores.auroc[kept]),
        "units": None if units is None else _base64(units, "<u4"),
        "a": _thousandths(scores.auroc[kept]),
        "low": _thousandths(low[kept]),
        "high": _thousandths(high[kept]),
        "controls": {name: _thousandths(found.auroc[kept]) for name, found in controls.items()},
        "fails": sorted(index for *where, index in probe.failing if tuple(where) == key),
        "accepted": sorted(index for *where, index in probe.accepted if tuple(where) == key),
    }


def _thousandths(values: npt.NDArray[np.float64]) -> str:
    return _base64(np.rint(1000 * values), "<u2")


def _base64(values: npt.NDArray[Any], kind: str) -> str:
    return base64.b64encode(values.astype(kind).tobytes()).decode()
