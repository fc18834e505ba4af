"""pytest's door: options, marker, fixtures, hooks. Thin, and without torch at import."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_watermark_guard.errors import (
    SettingsError,
    WatermarkGuardError,
    WatermarkSensitivityError,
)
from pytest_watermark_guard.plugin import hookspec
from pytest_watermark_guard.plugin.github import GitHubActions, send_failure
from pytest_watermark_guard.plugin.html import HtmlSummary
from pytest_watermark_guard.plugin.items import GateItem, check_spec, collect_gates
from pytest_watermark_guard.plugin.junit import add_properties
from pytest_watermark_guard.plugin.known_units import KnownSummary
from pytest_watermark_guard.plugin.mask_marker import MASK_MARKER, SIGNATURE, prepare_item
from pytest_watermark_guard.plugin.masking import MASKED, masking
from pytest_watermark_guard.plugin.options import (
    add_options,
    html_path,
    json_path,
    key_path,
    known_units,
    read_settings,
)
from pytest_watermark_guard.plugin.owned import send_owned
from pytest_watermark_guard.plugin.summary import Probed, Summary, send, send_masked, send_unchecked
from pytest_watermark_guard.probing.context import Run, current_run, using_run
from pytest_watermark_guard.settings import Settings
from pytest_watermark_guard.watermarks.scenarios import (
    READY_SCENARIOS,
    AnyScenario,
    resolve_scenarios,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_watermark_guard.images.batches import ProbingBatches
    from pytest_watermark_guard.mitigation.erasure import FeatureErasure
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.ownership.key import OwnershipKey
    from pytest_watermark_guard.reports.ownership import OwnershipReport
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.verdict import Verdict

MARKER = "wm_settings"


@dataclass
class GuardState:
    """What the plugin knows of one pytest run."""

    run: Run
    models: tuple[str, ...]
    only_models: bool
    json_path: Path | None
    html_path: Path | None
    known_path: Path
    junit: bool
    # Finished in this process since the last phase of a test was reported.
    pending: list[Probed]
    pending_owned: list[OwnershipReport]


STATE = pytest.StashKey[GuardState]()
WRONG_MARKER = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspec)


def pytest_configure(config: pytest.Config) -> None:
    known_settings = ", ".join(f"{f.name}=..." for f in fields(Settings))
    config.addinivalue_line(
        "markers",
        f"{MARKER}({known_settings}): settings of the watermark probes that this test makes.",
    )
    config.addinivalue_line(
        "markers",
        f"{SIGNATURE}: the model that the named fixture gives has its most watermark-sensitive "
        "features set to zero in this test (or threshold= or units= instead of fraction=), or "
        "what tells the marks erased from its features (method='erase').",
    )
    models = config.getoption("wm_model") or config.getini("wm_model") or []
    try:
        scenarios = _known_scenarios(config)
        settings = read_settings(config)
        resolve_scenarios(settings.scenarios, scenarios)
        for spec in models:
            check_spec(spec, config)
        path, html = json_path(config), html_path(config)
        known, known_path = known_units(config)
    except WatermarkGuardError as error:
        raise pytest.UsageError(f"watermark guard: {error}") from None
    pending: list[Probed] = []
    pending_owned: list[OwnershipReport] = []

    def on_report(report: ProbeReport) -> None:
        pending.append(Probed(report.to_json()))

    def on_verdict(verdict: Verdict) -> None:
        gate = {"threshold": verdict.threshold, "allow": dict(verdict.allow)}
        text = verdict.report.to_json()
        next(probed for probed in pending if probed.report == text).gates.append(gate)

    run = Run(settings, scenarios, _worker_number(config), on_report, on_verdict, known=known)
    run = replace(run, on_ownership=pending_owned.append, examples=html is not None)
    config.stash[STATE] = GuardState(
        run,
        tuple(dict.fromkeys(models)),
        # On the command line, models alone: "gate this checkpoint"; beside paths, or in an ini
        # file: gate it along with the tests.
        only_models=any(str(a).startswith("--wm-model") for a in config.invocation_params.args)
        and config.args_source is not pytest.Config.ArgsSource.ARGS,
        json_path=path,
        html_path=html,
        known_path=known_path,
        junit=bool(config.getoption("wm_junit") or config.getini("wm_junit")),
        pending=pending,
        pending_owned=pending_owned,
    )
    # From here on, so that probes made while tests are collected go by it too.
    during = ExitStack()
    during.enter_context(using_run(run))
    config.add_cleanup(during.close)


def _known_scenarios(config: pytest.Config) -> Mapping[str, AnyScenario]:
    offered = [s for group in config.hook.pytest_wm_scenarios(config=config) for s in group]
    own = {s.name: s for s in resolve_scenarios(offered)} if offered else {}
    return {**READY_SCENARIOS, **own}


def _worker_number(config: pytest.Config) -> int:
    worker: str = getattr(config, "workerinput", {}).get("workerid", "gw0")
    return int(worker.removeprefix("gw"))


# --- collecting ---------------------------------------------------------------------------------


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    return True if config.stash[STATE].only_models else None


def pytest_report_header(config: pytest.Config) -> list[str]:
    state = config.stash[STATE]
    if not state.models:
        return []
    alone = "; tests are not collected (name their paths to run them too)"
    names = ", ".join(state.models)
    return [f"watermark guard: gating {names}{alone if state.only_models else ''}"]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    run = config.stash[STATE].run
    for item in items:
        with _marked_rightly(item, MARKER):
            resolve_scenarios(_settings_at(item, run).scenarios, run.scenarios)
    items += collect_gates(session, config.stash[STATE].models)
    result = yield
    for item in items:  # after other plugins, which may have marked some of them
        with _marked_rightly(item, MASK_MARKER):
            prepare_item(item, run.scenarios)
    return result


@contextmanager
def _marked_rightly(item: pytest.Item, marker: str) -> Iterator[None]:
    try:
        yield
    except WatermarkGuardError as error:
        message = f"{item.nodeid}: @pytest.mark.{marker}: {error}"
        if not hasattr(item.config, "workerinput"):
            raise pytest.UsageError(message) from None
        # A worker cannot end the run: there, the test that is marked wrongly errs.
        item.stash[WRONG_MARKER] = message


def _settings_at(node: pytest.Item | pytest.Collector, run: Run) -> Settings:
    settings = run.settings
    for marker in reversed(list(node.iter_markers(MARKER))):  # the closest marker wins
        if marker.args:
            raise SettingsError("takes keyword arguments only")
        settings = settings.override(**marker.kwargs)
    return settings


# --- running ------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if WRONG_MARKER in item.stash:
        return (yield)
    run = item.config.stash[STATE].run
    with using_run(replace(run, settings=_settings_at(item, run))):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if WRONG_MARKER in item.stash:
        pytest.fail(item.stash[WRONG_MARKER], pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    # By the markers of the fixture's own scope: a wider fixture must not depend on which test
    # happens to ask for it first.
    run = request.config.stash[STATE].run
    with using_run(replace(run, settings=_settings_at(request.node, run))):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    test_report = yield
    state = item.config.stash[STATE]
    pending = state.pending
    if state.junit:
        add_properties(item, test_report, pending)
    if test_report.failed and call.excinfo:
        send_unchecked(test_report, call.excinfo.value)
        if verdict := _verdict(item, call.excinfo.value):
            send_failure(test_report, verdict, getattr(item, "probe_key", None))
    if pending:
        send(test_report, pending, getattr(item, "probe_key", None))
    if state.pending_owned:
        send_owned(test_report, state.pending_owned)
    if test_report.when == "setup" and MASKED in item.stash:
        send_masked(test_report, item.stash[MASKED])
    return test_report


def _verdict(item: pytest.Item, error: BaseException) -> Verdict | None:
    """Return the verdict of the gate that failed a test, if one did."""
    if isinstance(error, WatermarkSensitivityError):
        return cast("Verdict | None", error.verdict)
    return item.part if isinstance(item, GateItem) else None


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if hasattr(config, "workerinput"):
        return
    state = config.stash[STATE]
    show_report = bool(config.getoption("wm_report") or config.getini("wm_report"))
    threshold = state.run.settings.threshold
    pending = state.pending, state.pending_owned
    summary = Summary(config, *pending, show_report, state.json_path, threshold, state.models)
    # Of several, the last registered has the first word in the terminal.
    if os.environ.get("GITHUB_ACTIONS") == "true":
        actions = GitHubActions(summary, os.environ)
        config.pluginmanager.register(actions, "watermark-guard-github")
    known = KnownSummary(summary, state.run.known, state.known_path)
    config.pluginmanager.register(known, "watermark-guard-known")
    if state.html_path is not None:
        html = HtmlSummary(summary, state.html_path, state.run.settings)
        config.pluginmanager.register(html, "watermark-guard-html")
    config.pluginmanager.register(summary, "watermark-guard-summary")


# --- fixtures -----------------------------------------------------------------------------------


class Guard:
    """Probes and gates models by the settings of the test that asked for it."""

    @property
    def settings(self) -> Settings:
        """The settings that hold: marker, then command line, then ini file, then defaults."""
        return current_run().settings

    def probe(self, model: nn.Module | str, **arguments: Any) -> ProbeReport:
        """Probe a model; arguments as for `pytest_watermark_guard.probe`."""
        from pytest_watermark_guard.probing.probe import probe

        return probe(model, **arguments)

    def check(self, model: nn.Module | str, **arguments: Any) -> ProbeReport:
        """Fail if a model is sensitive; as `assert_not_watermark_sensitive`."""
        __tracebackhide__ = True
        from pytest_watermark_guard.probing.gate import assert_not_watermark_sensitive

        return assert_not_watermark_sensitive(model, **arguments)


@pytest.fixture(scope="session")
def wm_guard() -> Guard:
    """Probe (``wm_guard.probe(model)``) and gate (``wm_guard.check(model)``) models."""
    return Guard()


@pytest.fixture(scope="session")
def wm_device(pytestconfig: pytest.Config) -> torch.device:
    """The device that probes run on: --wm-device, and under xdist this worker's GPU."""
    from pytest_watermark_guard.models.device import resolve_device

    run = pytestconfig.stash[STATE].run
    return resolve_device(run.settings.device, run.worker)


@pytest.fixture(scope="session")
def wm_key(pytestconfig: pytest.Config) -> OwnershipKey:
    """The ownership key that ``--wm-key`` or ``wm_key`` in the ini file names."""
    from pytest_watermark_guard.ownership.key import OwnershipKey

    path = key_path(pytestconfig)
    if path is None:
        pytest.fail("wm_key: no key was named; pass --wm-key=FILE, or set wm_key", pytrace=False)
    return OwnershipKey.load(path)


@pytest.fixture
def wm_batches() -> ProbingBatches:
    """Batches of baseline images with their watermarked copies, ImageNet-normalised, 224 px.

    ``for batch in wm_batches`` gives ``batch.images`` and ``batch.marked["chinese"]``;
    ``wm_batches.for_model(model)`` preprocesses them for a model.
    """
    from pytest_watermark_guard.probing.batches import probing_batches

    return probing_batches()


@pytest.fixture
def wm_mask(request: pytest.FixtureRequest) -> Iterator[FeatureMask | FeatureErasure]:
    """What the marker ``wm_mask`` of this test took out of its model's features."""
    with masking(request) as mask:
        yield mask
