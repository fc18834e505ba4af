"""What a run says, and the files that it leaves: one that cannot be written costs it one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from pytest_watermark_guard.reports.log_lines import inert


def tell(terminalreporter: pytest.TerminalReporter, line: str) -> None:
    """Print a line in the name of the plugin."""
    terminalreporter.write_line(inert(f"watermark guard: {line}"))


def tell_estimate(config: pytest.Config, images: int, seconds: float) -> None:
    """Print about how long a probe will take, at once: in a log, nothing else moves."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    capturing = config.pluginmanager.get_plugin("capturemanager")
    if reporter is None or reporter.verbosity < 0:  # a worker of xdist, or a quiet run
        return
    minutes = round(seconds / 60)
    about = f"{minutes} min" if minutes >= 2 else f"{round(seconds)} s"
    with capturing.global_and_fixture_disabled() if capturing else nullcontext():
        reporter.ensure_newline()
        test, _, _ = os.environ.get("PYTEST_CURRENT_TEST", "probe ").rpartition(" ")
        tell(reporter, f"{test}: {images:,} images, about {about}, or less if the verdict is clear")


def reason(error: Exception) -> str:
    """Return why something could not be written, in a line."""
    said = error.strerror if isinstance(error, OSError) else None
    return (said or f"{type(error).__name__}: {error}").splitlines()[0]


def write_output(
    session: pytest.Session, file: str | Path, write: Callable[[], object], more: str = ""
) -> str:
    """Write one of a run's files, and return the line that tells of it, with `more` if it is there.

    Whatever goes wrong now must not cost the verdicts, which pytest is still to print: it fails the
    run, if nothing else did, and is told in that line.
    """
    try:
        write()
    except Exception as error:
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
        return f"could not write {file}: {reason(error)}; a file that was there before is as it was"
    return f"wrote {file}{more}"
