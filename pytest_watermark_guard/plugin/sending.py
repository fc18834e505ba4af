"""What a phase of a test found goes on its report: so it crosses from a worker without files."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from pytest_watermark_guard.errors import WatermarkSensitivityError
from pytest_watermark_guard.plugin.github import send_failure
from pytest_watermark_guard.plugin.items import GateItem
from pytest_watermark_guard.plugin.junit import add_properties
from pytest_watermark_guard.plugin.masking import MASKED
from pytest_watermark_guard.plugin.owned import send_owned
from pytest_watermark_guard.plugin.summary import send, send_masked, send_unchecked

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.state import GuardState
    from pytest_watermark_guard.reports.verdict import Verdict


def send_findings(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    test_report: pytest.TestReport,
    state: GuardState,
) -> None:
    """Put on a test's report what was probed, masked and verified in the phase that it is about."""
    key: str | None = getattr(item, "probe_key", None)
    if state.junit:
        add_properties(item, test_report, state.pending)
    if test_report.failed and call.excinfo:
        send_unchecked(test_report, call.excinfo.value)
        if verdict := _verdict(item, call.excinfo.value):
            send_failure(test_report, verdict, key)
    if state.pending:
        send(test_report, state.pending, key)
    if state.pending_owned:
        send_owned(test_report, state.pending_owned)
    if test_report.when == "setup" and MASKED in item.stash:
        send_masked(test_report, item.stash[MASKED])


def _verdict(item: pytest.Item, error: BaseException) -> Verdict | None:
    """Return the verdict of the gate that failed a test, if one did."""
    if isinstance(error, WatermarkSensitivityError):
        return cast("Verdict | None", error.verdict)
    part = item.part if isinstance(item, GateItem) else None
    return part if part is not None and part.failing else None
