"""All of a run's reports in one JSON file (``pytest --wm-json``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pytest_watermark_guard.report import ProbeReport

FORMAT = "pytest-watermark-guard/run"
FORMAT_VERSION = 1


def write_json(path: Path, reports: Sequence[ProbeReport], threshold: float) -> None:
    """Write the reports of a run, each with the units that reach the run's threshold."""
    data = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "threshold": threshold,
        "reports": [
            {
                **json.loads(report.to_json()),
                "sensitive": [asdict(unit) for unit in report.sensitive(threshold)],
            }
            for report in reports
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
