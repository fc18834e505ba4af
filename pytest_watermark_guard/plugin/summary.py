"""Probes on their way from the test that made them to the end of the run."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.plugin.outputs import tell, write_output
from pytest_watermark_guard.plugin.sending import received
from pytest_watermark_guard.reports.masked import Masked

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.state import GuardState
    from pytest_watermark_guard.reports.ownership import OwnershipReport
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.releases import Comparison
    from pytest_watermark_guard.reports.verdict import Verdict


NOT_CHECKED = 6
"""Exit code of a run in which models could not be checked, and nothing else failed."""


class Summary:
    """Gathers probes where the run is summed up: not in an xdist worker."""

    def __init__(self, config: pytest.Config, state: GuardState) -> None:
        self._config = config
        self._state = state
        self.threshold = state.run.settings.threshold
        self._probed: dict[str, tuple[ProbeReport, list[Verdict]]] = {}
        self._tests: dict[str, list[str]] = {}
        self._masked: dict[str, Masked] = {}
        self._owned: list[OwnershipReport] = []
        # Why gated models, by their specs, and tests, by their ids, could not be probed.
        self.failures: dict[str, str] = {}
        # Whether tests failed because a model could not be checked, and whether others did.
        self._unchecked = self._failed_otherwise = False
        self._stopped = False
        self._written: str | None = None

    def pytest_keyboard_interrupt(self) -> None:
        self._stopped = True

    def pytest_internalerror(self) -> None:
        self._stopped = True

    def interrupted(self, session: pytest.Session) -> bool:
        """Tell whether a run ended before all of its tests had: by Ctrl-C, ``-x`` or an error."""
        return bool(self._stopped or session.shouldfail or session.shouldstop)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        findings = received(report)
        for entry in findings.get("probed", ()):
            self._add(**entry)
            self._note_test(entry["key"], report.nodeid)
        if "masked" in findings:
            # That of a rerun replaces it.
            self._masked[report.nodeid] = Masked.from_json(findings["masked"])
        if "owned" in findings:
            from pytest_watermark_guard.reports.ownership import OwnershipReport

            self._add_owned(OwnershipReport.from_dict(json.loads(t)) for t in findings["owned"])
        if report.failed:
            if "undecided" in findings:
                self._unchecked = True  # its verdict, among `entries`, says the rest
            else:
                self._note_failure(report, findings.get("unprobed"))

    def _note_test(self, key: str, test: str) -> None:
        """Keep which test made a probe; a gate of the command line is called as its model is."""
        if key not in self._state.models and test not in self._tests.setdefault(key, []):
            self._tests[key].append(test)

    def _note_failure(self, report: pytest.TestReport, unprobed: str | None) -> None:
        specs = [spec for spec in self._state.models if report.nodeid.startswith(f"{spec}::")]
        if report.when == "setup" and specs:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = unprobed or (str(report.longrepr) if crash is None else crash.message)
            # The first failure of a model says most. "Failed" is pytest's name for `pytest.fail`.
            reason = reason.removeprefix("Failed: ").removeprefix(f"model spec {specs[0]!r}: ")
            self.failures.setdefault(specs[0], reason)
        elif unprobed is not None:
            self.failures.setdefault(report.nodeid, unprobed)
        else:
            self._failed_otherwise = True

    def _add(self, key: str, report: str, gates: list[dict[str, Any]]) -> None:
        from pytest_watermark_guard.probing.gate import judge
        from pytest_watermark_guard.reports.probe import ProbeReport

        # A rerun, or another worker that probed the same, adds no report.
        if key not in self._probed:
            probe_report = ProbeReport.from_json(report)
            self._probed[key] = (probe_report, [])
            self._config.hook.pytest_wm_report(report=probe_report, config=self._config)
        probe_report, verdicts = self._probed[key]
        for gate in gates:
            verdict = judge(probe_report, **gate)
            if verdict not in verdicts:
                verdicts.append(verdict)

    @property
    def entries(self) -> list[tuple[ProbeReport, list[Verdict]]]:
        """Each probe so far with the verdicts of the gates that used it."""
        # Probes that no test made: at collection, or while the session ended.
        for probed in self._state.pending:
            text = probed.report.to_json()
            self._add(key=text, report=text, gates=probed.gates)
        self._state.pending.clear()
        return list(self._probed.values())

    @property
    def undecided(self) -> list[Verdict]:
        """The gates that could not decide, of models that could be probed."""
        return [
            verdict for _, verdicts in self.entries for verdict in verdicts if verdict.undecided
        ]

    @property
    def comparisons(self) -> list[Comparison]:
        """Each probe so far that can be compared with an earlier release, so compared."""
        against = self._state.run.against
        if against is None:
            return []
        compared = [against.compared(report, self.threshold) for report, _ in self.entries]
        return [comparison for comparison in compared if not isinstance(comparison, str)]

    @property
    def release_lines(self) -> list[str]:
        """What changed since an earlier release: a line for each probe."""
        return self._release_lines(told=False)

    @property
    def untold_release_lines(self) -> list[str]:
        """Those of these lines that no table of the terminal's report tells."""
        return self._release_lines(told=self._state.show_report)

    def _release_lines(self, told: bool) -> list[str]:
        """Return the lines, if a table has `told` of what could be compared without those."""
        against = self._state.run.against
        if against is None:
            return []
        return [
            against.told(report, self.threshold)
            for report, _ in self.entries
            if not told or isinstance(against.compared(report, self.threshold), str)
        ]

    @property
    def masked(self) -> list[Masked]:
        """What was masked in tests so far."""
        return list(self._masked.values())

    @property
    def owned(self) -> list[OwnershipReport]:
        """Verifications of ownership so far."""
        self._add_owned(self._state.pending_owned)
        self._state.pending_owned.clear()
        return self._owned

    def _add_owned(self, verifications: Iterable[OwnershipReport]) -> None:
        self._owned += [new for new in verifications if new not in self._owned]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Write the file, and set the exit code if models could not be checked and no more."""
        failed = exitstatus == pytest.ExitCode.TESTS_FAILED
        if failed and (self.failures or self._unchecked) and not self._failed_otherwise:
            session.exitstatus = NOT_CHECKED
        path = self._state.json_path
        if path is None:
            return
        from pytest_watermark_guard.reports.json_file import write_json

        def write() -> None:
            write_json(
                path,
                self.entries,
                self.threshold,
                self.masked,
                self.owned,
                self.failures,
                self.comparisons,
                self.interrupted(session),
            )

        self._written = write_output(session, path, write)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, postfix: list[str]) -> None:
        if text := self._rendered(width=120):
            postfix.append(f"<h2>Watermark sensitivity</h2><pre>{html.escape(text)}</pre>")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._written is not None:
            tell(terminalreporter, self._written)
        if not self._state.show_report:
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
            tests = [self._tests.get(key, []) for key in self._probed]
            parts.append(render_reports(entries, self.threshold, tests=tests, **page))
        parts += [comparison.table(**page) for comparison in self.comparisons]
        gated = {r.model: r for r, _ in entries if r.model in self._state.models}
        if len(gated) > 1 or self.failures:
            # One model alone is told above.
            survey = SurveyReport(gated if len(gated) > 1 else {}, self.failures)
            parts.append(render_survey(survey, self.undecided, specs=False, **page))
        if masked:
            parts.append(render_masks(masked, **page))
        if owned:
            parts.append(render_ownership(owned, **page))
        return "\n".join(parts)
