"""What gates made of the known units, at the end of a run; an update of them is written then."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_watermark_guard.plugin.outputs import tell, write_output

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.summary import Summary
    from pytest_watermark_guard.reports.known_units import KnownUnits


class KnownSummary:
    """Works where the run is summed up: not in an xdist worker."""

    def __init__(self, summary: Summary, known: KnownUnits, path: Path) -> None:
        self._summary = summary
        self._known = known
        self._path = path
        self._lines: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Sum up what gates made of the known units; write them where that was asked for."""
        verdicts = [verdict for _, judged in self._summary.entries for verdict in judged]
        if verdicts:
            from pytest_watermark_guard.reports.known_units_text import known_summary

            elsewhere = self._known.elsewhere(verdict.report for verdict in verdicts)
            used = [(verdict.report.model, verdict.known) for verdict in verdicts]
            self._lines = list(known_summary(used, elsewhere))
        if not self._known.updating:
            return
        if not verdicts:
            self._lines = [f"no gate was made, so {self._known.file} is as it was"]
            return
        from pytest_watermark_guard.plugin.known_units_file import updated_units, write_known

        units = updated_units(self._known.units, verdicts)
        more = f": {len(units):,} known; review the change"
        self._lines.append(
            write_output(session, self._known.file, lambda: write_known(self._path, units), more)
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print it, report or no report: nothing is let pass in silence."""
        for line in self._lines:
            tell(terminalreporter, line)
