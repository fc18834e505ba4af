"""What GitHub Actions shows of a run: annotations of gates, and a summary of the step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.plugin.outputs import reason, tell
from pytest_watermark_guard.plugin.sending import received

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.summary import Summary


class GitHubActions:
    """Works where the run is summed up: not in an xdist worker."""

    def __init__(self, summary: Summary, environment: Mapping[str, str]) -> None:
        self._summary = summary
        self._workspace = environment.get("GITHUB_WORKSPACE", "")
        self._file = environment.get("GITHUB_STEP_SUMMARY", "")
        self._failures: dict[str, list[dict[str, Any]]] = {}
        self._trouble: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the failed gate of a test."""
        failure = received(report).get("failure")
        # A test that is about to run again has another outcome than "failed".
        if failure is not None and report.failed:
            self._failures.setdefault(failure["key"], []).append(failure)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the summary of the step."""
        entries, unprobed = self._summary.entries, self._summary.failures
        if not (entries or unprobed) or not self._file:
            return
        from pytest_watermark_guard.reports.github_summary import step_summary

        changes, interrupted = self._summary.release_lines, self._summary.interrupted(session)
        try:  # whatever goes wrong must not cost the verdicts, which pytest is still to print
            text = step_summary(entries, self._summary.threshold, unprobed, changes, interrupted)
            with Path(self._file).open("a", encoding="utf-8") as file:
                file.write(text)
        except Exception as error:
            self._trouble = f"could not write the step summary: {reason(error)}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the annotations: here nothing captures them."""
        if self._trouble is not None:
            tell(terminalreporter, self._trouble)
        unprobed, entries = self._summary.failures, self._summary.entries
        warned = [v for _, verdicts in entries for v in verdicts if v.outcome == "warned"]
        undecided = self._summary.undecided
        if not self._failures and not unprobed and not warned and not undecided:
            return
        from pytest_watermark_guard.reports.github_annotations import (
            NOT_PROBED,
            SENSITIVE,
            STRONG,
            UNDECIDED,
            commands,
        )

        texts: list[tuple[str, str, tuple[str, int] | None]] = [
            (SENSITIVE, "\n".join(failure["text"] for failure in failures), failures[0]["place"])
            for failures in self._failures.values()
        ]
        texts += [(NOT_PROBED, f"{spec}: {why}", None) for spec, why in unprobed.items()]
        texts += [(UNDECIDED, verdict.sentence(), None) for verdict in undecided]
        reactions = [(STRONG, verdict.sentence(), None) for verdict in warned]
        lines = (
            *commands("error", texts, self._workspace),
            *commands("warning", reactions, self._workspace),
        )
        for line in lines:
            terminalreporter.write_line(line)
