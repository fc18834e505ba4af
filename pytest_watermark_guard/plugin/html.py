"""The run's HTML file, written where the run is summed up (``pytest --wm-html``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.summary import Summary
    from pytest_watermark_guard.settings import Settings


class HtmlSummary:
    """Writes what a `Summary` gathered into one HTML file."""

    def __init__(self, summary: Summary, path: Path, settings: Settings) -> None:
        self._summary = summary
        self._path = path
        self._settings = settings

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the page."""
        from pytest_watermark_guard.plugin.options import command_words
        from pytest_watermark_guard.reports.html.origin import origin_of
        from pytest_watermark_guard.reports.html.page import write_html

        config = session.config
        paths = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else ()
        write_html(
            self._path,
            self._summary.entries,
            self._summary.threshold,
            masked=self._summary.masked,
            owned=self._summary.owned,
            failures=self._summary.failures,
            origin=origin_of(
                self._settings, config.getoption("wm_model") or (), paths, command_words(config)
            ),
            by_name=True,
            changes=self._summary.release_lines,
            comparisons=self._summary.comparisons,
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where it is."""
        terminalreporter.write_line(f"watermark guard: wrote {self._path}")
