"""The run that a probe is part of: its settings, and who wants to see its report.

Under pytest the plugin sets it; elsewhere the defaults hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.reports.known_units import KnownUnits
from pytest_watermark_guard.settings import Settings
from pytest_watermark_guard.watermarks.scenarios import READY_SCENARIOS, AnyScenario

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.ownership import OwnershipReport
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.releases import EarlierRelease
    from pytest_watermark_guard.reports.verdict import Verdict


def _nobody(*found: object) -> None:
    """Take a report, a verdict or an estimate that nobody waits for."""


@dataclass(frozen=True)
class Run:
    """What probes made now go by.

    Attributes
    ----------
    settings : Settings
        Hold where an argument is not given.
    scenarios : mapping of str to Scenario or PairedFolder
        Those that can be asked for by name.
    worker : int
        Number of this worker process, which chooses its GPU among several.
    workers : int
        How many of them share this machine's cores.
    on_report : callable
        Receives every finished report.
    on_verdict : callable
        Receives every gate's verdict, after its report.
    on_ownership : callable
        Receives every finished verification of ownership.
    on_estimate : callable
        Receives how many images a probe has, and about how many seconds they will take, where
        these are many.
    examples : bool
        Whether reports name the images that move the worst units most and least.
    known : KnownUnits
        Sensitive units that are on record.
    against : EarlierRelease or None
        The release that probes are compared with.
    """

    settings: Settings = field(default_factory=Settings)
    scenarios: Mapping[str, AnyScenario] = field(default_factory=lambda: READY_SCENARIOS)
    worker: int = 0
    workers: int = 1
    on_report: Callable[[ProbeReport], None] = _nobody
    on_verdict: Callable[[Verdict], None] = _nobody
    on_ownership: Callable[[OwnershipReport], None] = _nobody
    on_estimate: Callable[[int, float], None] = _nobody
    examples: bool = False
    known: KnownUnits = field(default_factory=KnownUnits)
    against: EarlierRelease | None = None


# A plain global, not a ContextVar: a thread that a test starts must see its test's settings.
_current = Run()


def current_run() -> Run:
    """Return the run that is going on."""
    return _current


@contextmanager
def using_run(run: Run) -> Iterator[None]:
    """Make `run` the current one within the block."""
    global _current
    before, _current = _current, run
    try:
        yield
    finally:
        _current = before


def check_release(settings: Settings, against: EarlierRelease | None) -> None:
    """Raise `SettingsError` if a gate is held to an earlier release that nobody named."""
    if settings.no_worse and against is None:
        raise SettingsError(
            "no_worse: no worse than which release? Name the JSON file that it left by "
            "--wm-against=FILE"
        )
