"""What the plugin knows of one pytest run, found out when the run starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.errors import KnownUnitsError, SettingsError
from pytest_watermark_guard.plugin.choosing import Choice, choose
from pytest_watermark_guard.plugin.early_checks import check_options, parsed_specs
from pytest_watermark_guard.plugin.items import gates_of
from pytest_watermark_guard.plugin.options import (
    KNOWN_FILE,
    flag_is_set,
    named_path,
    output_path,
    read_settings,
)
from pytest_watermark_guard.plugin.outputs import tell_estimate
from pytest_watermark_guard.probing.context import Run, check_release, using_run
from pytest_watermark_guard.reports.known_units import KnownUnit, KnownUnits
from pytest_watermark_guard.watermarks.scenarios import (
    READY_SCENARIOS,
    AnyScenario,
    resolve_scenarios,
)

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.ownership import OwnershipReport
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.releases import EarlierRelease
    from pytest_watermark_guard.reports.verdict import Verdict
    from pytest_watermark_guard.settings import Settings


@dataclass
class Probed:
    """A probe's report, and the terms of each gate that used it, see `Verdict.terms`."""

    report: ProbeReport
    gates: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class GuardState:
    """What the plugin knows of one pytest run."""

    run: Run
    models: tuple[str, ...]
    choice: Choice
    json_path: Path | None
    html_path: Path | None
    known_path: Path
    show_report: bool
    junit: bool
    # Finished in this process since the last phase of a test was reported.
    pending: list[Probed]
    pending_owned: list[OwnershipReport]


def start_run(config: pytest.Config) -> GuardState:
    """Read the options, and have probes go by them until the run ends."""
    scenarios = _known_scenarios(config)
    settings = read_settings(config)
    resolve_scenarios(settings.scenarios, scenarios)
    typed = config.getoption("wm_model")
    models: tuple[str, ...] = tuple(dict.fromkeys(typed or config.getini("wm_model") or ()))
    # What an ini file says must not keep an editor from collecting all other tests.
    specs = parsed_specs(config, models if typed or not config.option.collectonly else ())
    json_path, html_path = output_path(config, "json"), output_path(config, "html")
    known, known_path = _known_units(config)
    against = _earlier_release(config, settings)
    pending: list[Probed] = []
    pending_owned: list[OwnershipReport] = []

    def on_verdict(verdict: Verdict) -> None:
        probed = next(probed for probed in pending if probed.report is verdict.report)
        probed.gates.append(verdict.terms)

    worker = getattr(config, "workerinput", {})  # of xdist
    run = Run(
        settings,
        scenarios,
        worker=int(worker.get("workerid", "gw0").removeprefix("gw")),
        workers=int(worker.get("workercount", 1)),
        on_report=lambda report: pending.append(Probed(report)),
        on_verdict=on_verdict,
        on_ownership=pending_owned.append,
        on_estimate=partial(tell_estimate, config),
        examples=html_path is not None,
        known=known,
        against=against,
    )
    choice = choose(config, models, gates_of(run))
    check_options(config, run, choice.gates, specs)
    # From here on, so that probes made while tests are collected go by it too.
    during = ExitStack()
    during.enter_context(using_run(run))
    config.add_cleanup(during.close)
    return GuardState(
        run,
        models,
        choice=choice,
        json_path=json_path,
        html_path=html_path,
        known_path=known_path,
        show_report=flag_is_set(config, "report"),
        junit=flag_is_set(config, "junit"),
        pending=pending,
        pending_owned=pending_owned,
    )


def _known_scenarios(config: pytest.Config) -> Mapping[str, AnyScenario]:
    offered = [s for group in config.hook.pytest_wm_scenarios(config=config) for s in group]
    own = {s.name: s for s in resolve_scenarios(offered)} if offered else {}
    return {**READY_SCENARIOS, **own}


def _known_units(config: pytest.Config) -> tuple[KnownUnits, Path]:
    """Return the units on record, and the file that they are in, or would be."""
    # What an ini file says must not keep an editor from collecting.
    named = None if config.option.collectonly else named_path(config, "known")
    path = named or (config.inipath.parent if config.inipath else config.rootpath) / KNOWN_FILE
    updating = bool(config.getoption("wm_update_known"))
    if config.getoption("wm_no_known"):
        if updating:
            raise SettingsError("--wm-update-known and --wm-no-known exclude each other")
        return KnownUnits(), path
    shown = _shown(config, path)
    if config.option.collectonly:
        return KnownUnits(shown), path
    if not path.exists() and not updating:
        if named:
            raise SettingsError(f"known: there is no {str(path)!r}; --wm-update-known makes it")
        return KnownUnits(shown), path
    units: tuple[KnownUnit, ...] = ()
    if path.exists():
        from pytest_watermark_guard.plugin.known_units_file import read_known

        units = read_known(path)
    if updating and not os.access(path.parent, os.W_OK):
        raise KnownUnitsError(
            f"cannot write {str(path)!r}: its folder does not exist or is read-only"
        )
    return KnownUnits(shown, units, updating), path


def _earlier_release(config: pytest.Config, settings: Settings) -> EarlierRelease | None:
    """Return the release that probes are compared with, if one is named."""
    if config.option.collectonly:
        return None
    path = named_path(config, "against")
    if path is None:
        check_release(settings, None)
        return None
    from pytest_watermark_guard.reports.release_file import read_release
    from pytest_watermark_guard.reports.releases import EarlierRelease

    return EarlierRelease(_shown(config, path), read_release(path))


def _shown(config: pytest.Config, path: Path) -> str:
    """Return a file's path as people read it."""
    inside = path.is_relative_to(config.rootpath)
    return str(path.relative_to(config.rootpath) if inside else path)
