"""Verifications of ownership on their way from a test to the end of the run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.ownership import OwnershipReport


def send_owned(test_report: pytest.TestReport, pending: list[OwnershipReport]) -> None:
    """Put finished verifications on a test report, as text; `pending` is emptied."""
    texts = [json.dumps(report.to_dict()) for report in pending]
    test_report.wm_owned = texts  # type: ignore[attr-defined]
    pending.clear()


def received_owned(test_report: pytest.TestReport) -> list[OwnershipReport]:
    """Return the verifications on a test report."""
    texts: list[str] = getattr(test_report, "wm_owned", [])
    if not texts:
        return []
    from pytest_watermark_guard.reports.ownership import OwnershipReport

    return [OwnershipReport.from_dict(json.loads(text)) for text in texts]
