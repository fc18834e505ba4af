"""The run's HTML file, written where the run is summed up (``pytest --wm-html``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_watermark_guard.plugin.outputs import tell, write_output

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.summary import Summary
    from pytest_watermark_guard.settings import Settings


class HtmlSummary:
    """Writes what a `Summary` gathered into one HTML file."""

    def __init__(self, summary: Summary, path: Path, settings: Settings) -> None:
        self._summary = summary
        self._path = path
        self._settings = settings
        self._written: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the page."""
        from pytest_watermark_guard.plugin.options import command_words
        from pytest_watermark_guard.reports.html.origin import origin_of
        from pytest_watermark_guard.reports.html.page import write_html

        config = session.config
        paths = config.args if config.args_source is pytest.Config.ArgsSource.ARGS else ()

        def write() -> None:
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
                interrupted=self._summary.interrupted(session),
            )

        self._written = write_output(session, self._path, write)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where it is, or why it is not."""
        if self._written is not None:
            tell(terminalreporter, self._written)
