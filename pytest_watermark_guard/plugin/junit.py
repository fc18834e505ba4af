"""Properties in JUnit XML (``pytest --wm-junit``): on gate items, and on tests that probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

from pytest_watermark_guard.plugin.items import GateItem

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.state import Probed
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.verdict import Verdict

PREFIX = "watermark_guard"


def add_properties(
    item: pytest.Item, test_report: pytest.TestReport, pending: Sequence[Probed]
) -> None:
    """Add to a test's properties what was probed in the phase that the report is about."""
    properties = item.user_properties
    if test_report.when == "setup":  # of a rerun, maybe
        properties[:] = [p for p in properties if not str(p[0]).startswith(f"{PREFIX}.")]
    for report, verdict in _probed(item, test_report, pending):
        before = sum(name.startswith(PREFIX) and name.endswith(".model") for name, _ in properties)
        properties += _properties(f"{PREFIX}.{before + 1}" if before else PREFIX, report, verdict)
    test_report.user_properties = list(properties)


def _probed(
    item: pytest.Item, test_report: pytest.TestReport, pending: Sequence[Probed]
) -> Iterator[tuple[ProbeReport, Verdict | None]]:
    if isinstance(item, GateItem):
        # All items of a model share its probe: each tells its own part.
        if item.part is not None and test_report.when == "call":
            yield item.part.report, item.part
        return
    from pytest_watermark_guard.probing.gate import judge

    for probed in pending:
        for gate in probed.gates:
            yield probed.report, judge(probed.report, **gate)
        if not probed.gates:
            yield probed.report, None


def _properties(
    prefix: str, report: ProbeReport, verdict: Verdict | None
) -> Iterator[tuple[str, str]]:
    from pytest_watermark_guard.reports.text import printable

    yield f"{prefix}.model", printable(report.model)
    if verdict is not None:
        yield f"{prefix}.verdict", verdict.outcome
        yield f"{prefix}.threshold", f"{verdict.threshold:g}"
        needed = verdict.conclusion.images_needed
        if verdict.outcome == "inconclusive" and needed is not None:
            yield f"{prefix}.images_needed", str(needed)
    yield f"{prefix}.n_images", str(report.n_images)
    for scores in report:
        name = printable(f"{scores.layer}.{scores.scenario}")
        yield f"{prefix}.max_d.{name}", f"{scores.differentiability.max():.4f}"
