"""Probes on their way from the test that made them to the end of the run."""

from __future__ import annotations

import html
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.plugin.owned import received_owned
from pytest_watermark_guard.reports.masked import Masked

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.ownership import OwnershipReport
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.verdict import Verdict


NOT_CHECKED = 6
"""Exit code of a run in which models could not be probed, and nothing else failed."""


@dataclass
class Probed:
    """A probe's report, and the threshold and the allowed units of each gate that used it."""

    report: ProbeReport
    gates: list[dict[str, Any]] = field(default_factory=list)


def judged(report: ProbeReport, gates: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """Return the verdicts of the gates that used a probe."""
    from pytest_watermark_guard.probing.gate import judge

    return [judge(report, gate["threshold"], gate["allow"]) for gate in gates]


def send(test_report: pytest.TestReport, pending: list[Probed], key: str | None) -> None:
    """Put finished probes on a test report, as text: so they cross from a worker without files.

    Parameters
    ----------
    test_report : TestReport
    pending : list of Probed
        Emptied.
    key : str or None
        What tells these probes from others, whichever worker makes them; default their content.
    """
    entries = []
    for probed in pending:
        text = probed.report.to_json()
        entries.append({"key": key or text, "report": text, "gates": probed.gates})
    test_report.wm_probed = entries  # type: ignore[attr-defined]
    pending.clear()


def send_masked(test_report: pytest.TestReport, masked: Masked) -> None:
    """Put what was masked for a test on its report, as text."""
    test_report.wm_masked = masked.to_json()  # type: ignore[attr-defined]


def send_unchecked(test_report: pytest.TestReport, error: BaseException) -> None:
    """Put on a test's report that it failed because something could not be checked, and why."""
    # A gate item fails by pytest.fail, which keeps the error itself as context.
    reason = error.__context__ if isinstance(error, pytest.fail.Exception) else error
    if isinstance(reason, WatermarkGuardError):
        test_report.wm_unchecked = str(reason)  # type: ignore[attr-defined]


class Summary:
    """Gathers probes where the run is summed up: not in an xdist worker.

    Parameters
    ----------
    config : pytest.Config
    pending, pending_owned : list
        Where probes and verifications wait that no test report has taken along.
    show_report : bool
        Whether to print tables.
    json_path : Path or None
        Where to write all numbers.
    threshold : float
        The run's.
    models : sequence of str
        Specs that the run gates; of several, a survey is printed too.
    """

    def __init__(
        self,
        config: pytest.Config,
        pending: list[Probed],
        pending_owned: list[OwnershipReport],
        show_report: bool,
        json_path: Path | None,
        threshold: float,
        models: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._pending = pending
        self._pending_owned = pending_owned
        self._show_report = show_report
        self._json_path = json_path
        self.threshold = threshold
        self._models = models
        self._probed: dict[str, tuple[ProbeReport, list[Verdict]]] = {}
        self._masked: dict[str, Masked] = {}
        self._owned: list[OwnershipReport] = []
        self.failures: dict[str, str] = {}
        """Specs of gated models that could not be probed, and tests likewise, and why."""
        self._failed_otherwise = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        probed: list[dict[str, Any]] = getattr(report, "wm_probed", [])
        for entry in probed:
            self._add(**entry)
        if (text := getattr(report, "wm_masked", None)) is not None:
            self._masked[report.nodeid] = Masked.from_json(text)  # that of a rerun replaces it
        self._owned += [new for new in received_owned(report) if new not in self._owned]
        if report.failed:
            self._note_failure(report)

    def _note_failure(self, report: pytest.TestReport) -> None:
        why = getattr(report, "wm_unchecked", None)
        specs = [spec for spec in self._models if report.nodeid.startswith(f"{spec}::")]
        if report.when == "setup" and specs:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = why or (str(report.longrepr) if crash is None else crash.message)
            # The first failure of a model says most. "Failed" is pytest's name for `pytest.fail`.
            self.failures.setdefault(specs[0], reason.removeprefix("Failed: "))
        elif why is not None:
            self.failures.setdefault(report.nodeid, why)
        else:
            self._failed_otherwise = True

    def _add(self, key: str, report: str, gates: list[dict[str, Any]]) -> None:
        from pytest_watermark_guard.reports.probe import ProbeReport

        # A rerun, or another worker that probed the same, adds no report.
        if key not in self._probed:
            probe_report = ProbeReport.from_json(report)
            self._probed[key] = (probe_report, [])
            self._config.hook.pytest_wm_report(report=probe_report, config=self._config)
        probe_report, verdicts = self._probed[key]
        for verdict in judged(probe_report, gates):
            if verdict not in verdicts:
                verdicts.append(verdict)

    @property
    def entries(self) -> list[tuple[ProbeReport, list[Verdict]]]:
        """Each probe so far with the verdicts of the gates that used it."""
        # Probes that no test made: at collection, or while the session ended.
        for probed in self._pending:
            text = probed.report.to_json()
            self._add(key=text, report=text, gates=probed.gates)
        self._pending.clear()
        return list(self._probed.values())

    @property
    def masked(self) -> list[Masked]:
        """What was masked in tests so far."""
        return list(self._masked.values())

    @property
    def owned(self) -> list[OwnershipReport]:
        """Verifications of ownership so far."""
        self._owned += [new for new in self._pending_owned if new not in self._owned]
        self._pending_owned.clear()
        return self._owned

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the file, and set the exit code if models could not be probed and no more."""
        failed = exitstatus == pytest.ExitCode.TESTS_FAILED
        if failed and self.failures and not self._failed_otherwise:
            session.exitstatus = NOT_CHECKED
        if self._json_path is None:
            return
        from pytest_watermark_guard.reports.json_file import write_json

        write_json(
            self._json_path,
            self.entries,
            self.threshold,
            self.masked,
            self.owned,
            self.failures,
        )

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, postfix: list[str]) -> None:
        if text := self._rendered(width=120):
            postfix.append(f"<h2>Watermark sensitivity</h2><pre>{html.escape(text)}</pre>")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._json_path is not None:
            terminalreporter.write_line(f"watermark guard: wrote {self._json_path}")
        if not self._show_report:
            return
        terminalreporter.section("watermark sensitivity")
        writer = self._config.get_terminal_writer()
        encoding = (getattr(sys.__stdout__, "encoding", None) or "utf-8").lower()
        text = self._rendered(
            width=writer.fullwidth,
            color=writer.hasmarkup,
            ascii_only=not encoding.startswith("utf"),
        )
        terminalreporter.write(text or "no probe was made\n")

    def _rendered(self, width: int, color: bool = False, ascii_only: bool = False) -> str:
        """Draw all tables of the run; empty if there is nothing to tell."""
        entries, masked, owned = self.entries, self.masked, self.owned
        if not (entries or masked or owned or self.failures):
            return ""
        from pytest_watermark_guard.reports.mask_table import render_masks
        from pytest_watermark_guard.reports.ownership import render_ownership
        from pytest_watermark_guard.reports.survey import SurveyReport, render_survey
        from pytest_watermark_guard.reports.terminal import render_reports

        page: dict[str, Any] = {"width": width, "color": color, "ascii_only": ascii_only}
        parts = []
        if entries:
            parts.append(render_reports(entries, self.threshold, **page))
        gated = {r.model: r for r, _ in entries if r.model in self._models}
        if len(gated) > 1 or self.failures:
            parts.append(render_survey(SurveyReport(gated, self.failures), **page))
        if masked:
            parts.append(render_masks(masked, **page))
        if owned:
            parts.append(render_ownership(owned, **page))
        return "\n".join(parts)
