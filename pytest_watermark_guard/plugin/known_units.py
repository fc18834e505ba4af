"""Known units at the start of a run and at its end, when an update of them is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_watermark_guard.errors import KnownUnitsError, SettingsError
from pytest_watermark_guard.plugin.options import KNOWN_FILE, named_path
from pytest_watermark_guard.reports.known_units import KnownUnit, KnownUnits

if TYPE_CHECKING:
    from pytest_watermark_guard.plugin.summary import Summary


def known_units(config: pytest.Config) -> tuple[KnownUnits, Path]:
    """Return the units on record, and the file that they are in, or would be."""
    named = named_path(config, "known")
    path = named or (config.inipath.parent if config.inipath else config.rootpath) / KNOWN_FILE
    updating = bool(config.getoption("wm_update_known"))
    if config.getoption("wm_no_known"):
        if updating:
            raise SettingsError("--wm-update-known and --wm-no-known exclude each other")
        return KnownUnits(), path
    inside = path.is_relative_to(config.rootpath)
    shown = str(path.relative_to(config.rootpath) if inside else path)
    if not path.exists() and not updating:
        if named:
            raise SettingsError(f"known: there is no {str(path)!r}; --wm-update-known makes it")
        return KnownUnits(shown), path
    units: tuple[KnownUnit, ...] = ()
    if path.exists():
        from pytest_watermark_guard.plugin.known_units_file import read_known

        units = read_known(path)
    if updating and not os.access(path.parent, os.W_OK):
        raise KnownUnitsError(f"cannot write {str(path)!r}: no folder to write to")
    return KnownUnits(shown, units, updating), path


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
        try:
            write_known(self._path, units)
            self._lines.append(f"wrote {self._known.file}: {len(units):,} known; review the change")
        except OSError as error:
            self._lines.append(f"could not write {self._known.file}: {error.strerror}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print it, report or no report: nothing is let pass in silence."""
        for line in self._lines:
            terminalreporter.write_line(f"watermark guard: {line}")
