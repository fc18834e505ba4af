"""What a phase of a test found goes on its report: so it crosses from a worker without files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_watermark_guard.errors import (
    NotCheckedError,
    WatermarkGuardError,
    WatermarkSensitivityError,
)
from pytest_watermark_guard.plugin.items import GateItem
from pytest_watermark_guard.plugin.junit import add_properties
from pytest_watermark_guard.plugin.masking import MASKED

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.state import GuardState
    from pytest_watermark_guard.reports.verdict import Verdict


def send_findings(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    test_report: pytest.TestReport,
    state: GuardState,
) -> None:
    """Put on a test's report what was probed, masked and verified in the phase that it is about.

    That is plain data, by kind, in the attribute ``wm_findings``.
    """
    if state.junit:
        add_properties(item, test_report, state.pending)
    findings: dict[str, Any] = {}
    # All items of a model share its probe, whichever worker makes it.
    key = item.gate.name if isinstance(item, GateItem) else None
    if test_report.failed and call.excinfo:
        error = call.excinfo.value
        # A gate item fails by pytest.fail, which keeps the error itself as context.
        reason = error.__context__ if isinstance(error, pytest.fail.Exception) else error
        if isinstance(reason, WatermarkGuardError):
            # A gate that cannot decide has a verdict, which says what it needs.
            decided = not isinstance(reason, NotCheckedError) or reason.verdict is None
            findings["unprobed" if decided else "undecided"] = str(reason)
        if verdict := _verdict(item, error):
            findings["failure"] = _failure(test_report, verdict, key)
    if state.pending:
        probed = [(each.report.to_json(), each.gates) for each in state.pending]
        findings["probed"] = [
            {"key": key or text, "report": text, "gates": gates} for text, gates in probed
        ]
        state.pending.clear()
    if state.pending_owned:
        findings["owned"] = [json.dumps(report.to_dict()) for report in state.pending_owned]
        state.pending_owned.clear()
    if test_report.when == "setup" and MASKED in item.stash:
        findings["masked"] = item.stash[MASKED].to_json()
    test_report.wm_findings = findings  # type: ignore[attr-defined]


def received(test_report: pytest.TestReport) -> dict[str, Any]:
    """Return what `send_findings` put on a report."""
    findings: dict[str, Any] = getattr(test_report, "wm_findings", {})
    return findings


def _verdict(item: pytest.Item, error: BaseException) -> Verdict | None:
    """Return the verdict of the gate that failed a test, if one did."""
    if isinstance(error, WatermarkSensitivityError):
        return cast("Verdict | None", error.verdict)
    part = item.part if isinstance(item, GateItem) else None
    return part if part is not None and part.outcome == "failed" else None


def _failure(test_report: pytest.TestReport, verdict: Verdict, key: str | None) -> dict[str, Any]:
    from pytest_watermark_guard.reports.github_annotations import gate_failure

    # pytest's own choice of the user's line; a gate item has none.
    crash = getattr(test_report.longrepr, "reprcrash", None)
    place = (str(crash.path), int(crash.lineno)) if crash else None
    return {"key": key or test_report.nodeid, "text": gate_failure(verdict), "place": place}
