"""What changed since an earlier release, told at the end of a run (``pytest --wm-against``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_watermark_guard.plugin.outputs import tell

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.summary import Summary


class ReleaseSummary:
    """Works where the run is summed up: not in an xdist worker."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print a line for each probe whose comparison no table tells."""
        for line in self._summary.untold_release_lines:
            tell(terminalreporter, line)
