"""All of a run's reports in one JSON file (``pytest --wm-json``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pytest_watermark_guard.reports.known_units import KnownUnit
from pytest_watermark_guard.reports.masked import Masked
from pytest_watermark_guard.reports.ownership import OwnershipReport
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.release_file import RUN
from pytest_watermark_guard.reports.releases import Comparison
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.verdict import Verdict


def write_json(
    path: Path,
    entries: Sequence[tuple[ProbeReport, Sequence[Verdict]]],
    threshold: float,
    masked: Sequence[Masked] = (),
    owned: Sequence[OwnershipReport] = (),
    failures: Mapping[str, str] = MappingProxyType({}),
    comparisons: Sequence[Comparison] = (),
    interrupted: bool = False,
) -> None:
    """Write a run's reports with the units that reach its threshold, and all else it found."""
    data = {
        "interrupted": interrupted,
        "threshold": threshold,
        "reports": [
            {
                **report.to_dict(),
                "sensitive": [asdict(unit) for unit in report.sensitive(threshold)],
                "gates": [_verdict(verdict) for verdict in verdicts],
            }
            for report, verdicts in entries
        ],
        "masks": [asdict(mask) for mask in masked],
        "failures": dict(failures),
        "comparisons": [comparison.to_dict() for comparison in comparisons],
        "ownership": [{**report.to_dict(), "sentence": report.sentence()} for report in owned],
    }
    RUN.write(path, data, indent=1)


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "passed": verdict.passed,
        "outcome": verdict.outcome,
        "sentence": verdict.sentence(),
        "threshold": verdict.threshold,
        "warn": verdict.warn,
        "failing": [asdict(unit) for unit in verdict.failing],
        "strong": [asdict(unit) for unit in verdict.strong],
        "no_worse": verdict.no_worse,
        "risen": [asdict(unit) for unit in verdict.risen],
        "uncompared": list(verdict.uncompared),
        "images_needed": verdict.conclusion.images_needed,
        "predictions": [
            {**finding._asdict(), "interval": list(finding.interval), "answer": finding.answer}
            for finding in verdict.predictions
        ],
        "allowed": [{**asdict(unit), "reason": reason} for unit, reason in verdict.allowed],
        "stale": list(verdict.stale),
        "known": {
            "file": verdict.known.file,
            "passed": [_known_unit(*pair) for pair in verdict.known.passed],
            "worse": [_known_unit(*pair) for pair in verdict.known.worse],
            "expired": [_known_unit(*pair) for pair in verdict.known.expired],
            "unneeded": list(map(_record, verdict.known.unneeded)),
            "other_weights": list(map(_record, verdict.known.other_weights)),
        },
    }


def _known_unit(unit: SensitiveUnit, known: KnownUnit) -> dict[str, Any]:
    return {**asdict(unit), "record": _record(known)}


def _record(known: KnownUnit) -> dict[str, Any]:
    expires = known.expires and known.expires.isoformat()
    error = None if known.error == math.inf else known.error  # JSON has no infinity
    fields = {"date": known.date.isoformat(), "expires": expires, "error": error}
    return {**asdict(known), **fields}
