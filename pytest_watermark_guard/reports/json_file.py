"""All of a run's reports in one JSON file (``pytest --wm-json``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pytest_watermark_guard.reports.known_units import KnownUnit
from pytest_watermark_guard.reports.masked import Masked
from pytest_watermark_guard.reports.probe import ProbeReport, SensitiveUnit
from pytest_watermark_guard.reports.verdict import Verdict

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.ownership import OwnershipReport

FORMAT = "pytest-watermark-guard/run"
FORMAT_VERSION = 1


def write_json(
    path: Path,
    entries: Sequence[tuple[ProbeReport, Sequence[Verdict]]],
    threshold: float,
    masked: Sequence[Masked] = (),
    owned: Sequence[OwnershipReport] = (),
    failures: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a run's reports with the units that reach its threshold, and all else it found."""
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "threshold": threshold,
        "reports": [
            {
                **json.loads(report.to_json()),
                "sensitive": [asdict(unit) for unit in report.sensitive(threshold)],
                "gates": [_verdict(verdict) for verdict in verdicts],
            }
            for report, verdicts in entries
        ],
        "masks": [mask.to_dict() for mask in masked],
        "failures": dict(failures),
        "ownership": [{**report.to_dict(), "sentence": report.sentence()} for report in owned],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "passed": verdict.passed,
        "threshold": verdict.threshold,
        "failing": [asdict(unit) for unit in verdict.failing],
        "allowed": [{**asdict(unit), "reason": reason} for unit, reason in verdict.allowed],
        "stale": list(verdict.stale),
        "known": {
            "file": verdict.known.file,
            "passed": [_known_unit(*pair) for pair in verdict.known.passed],
            "worse": [_known_unit(*pair) for pair in verdict.known.worse],
            "expired": [_known_unit(*pair) for pair in verdict.known.expired],
            "unneeded": [_record(known) for known in verdict.known.unneeded],
            "other_weights": [_record(known) for known in verdict.known.other_weights],
        },
    }


def _known_unit(unit: SensitiveUnit, known: KnownUnit) -> dict[str, Any]:
    return {**asdict(unit), "record": _record(known)}


def _record(known: KnownUnit) -> dict[str, Any]:
    expires = known.expires and known.expires.isoformat()
    return {**asdict(known), "date": known.date.isoformat(), "expires": expires}
