"""All of a run's reports in one JSON file (``pytest --wm-json``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytest_watermark_guard.gate import Verdict
from pytest_watermark_guard.masking import Masked
from pytest_watermark_guard.report import ProbeReport

FORMAT = "pytest-watermark-guard/run"
FORMAT_VERSION = 1


def write_json(
    path: Path,
    entries: Sequence[tuple[ProbeReport, Sequence[Verdict]]],
    threshold: float,
    masked: Sequence[Masked] = (),
) -> None:
    """Write a run's reports, the units that reach its threshold, its gates' verdicts, its masks."""
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
    }
