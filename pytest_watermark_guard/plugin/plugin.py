"""pytest's door: options, hooks and fixtures, each a few lines.

Every pytest run imports it, also one that has nothing to do with models: what only some hooks need
is imported in them.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.plugin import hookspec
from pytest_watermark_guard.plugin.options import add_options, named_path
from pytest_watermark_guard.reports.log_lines import inert

if TYPE_CHECKING:
    import torch

    from pytest_watermark_guard.images.batches import ProbingBatches
    from pytest_watermark_guard.mitigation.erasure import FeatureErasure
    from pytest_watermark_guard.mitigation.mask import FeatureMask
    from pytest_watermark_guard.models.near_misses import AnyModel
    from pytest_watermark_guard.ownership.key import OwnershipKey
    from pytest_watermark_guard.plugin.state import GuardState
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.settings import Settings

STATE: pytest.StashKey[GuardState] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspec)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.help:
        return  # the options are printed, and nothing is run
    from pytest_watermark_guard.plugin.markers import register_markers
    from pytest_watermark_guard.plugin.state import start_run

    register_markers(config)
    try:
        config.stash[STATE] = start_run(config)
    except WatermarkGuardError as error:
        raise pytest.UsageError(inert(f"watermark guard: {error}")) from None


# --- collecting ---------------------------------------------------------------------------------


def pytest_report_header(config: pytest.Config) -> list[str]:
    said = config.stash[STATE].choice.said
    return [inert(f"watermark guard: {said}")] if said else []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    # pytest looks for files of the names that it is given: ids of gates are none.
    config = session.config
    given, config.args = config.args, list(config.stash[STATE].choice.arguments)
    try:
        return (yield)
    finally:
        config.args = given


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    from pytest_watermark_guard.plugin.items import collect_models

    report = yield
    if isinstance(collector, pytest.Session) and report.passed:
        gates = collector.config.stash[STATE].choice.gates
        report.result = [*report.result, *collect_models(collector, gates)]
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, object, object]:
    from pytest_watermark_guard.plugin.markers import check_settings_markers, prepare_masks

    state = config.stash[STATE]
    check_settings_markers(items, state.run)
    result = yield
    prepare_masks(items, state.run)  # after other plugins, which may have marked some of them
    return result


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Generator[None, object, object]:
    from pytest_watermark_guard.plugin.distribution import keep_models_together

    scheduler = yield
    gates = config.stash[STATE].choice.gates
    return keep_models_together(scheduler, config, log, gates) if gates else scheduler


# --- running ------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    from pytest_watermark_guard.plugin.markers import WRONG_MARKER, run_at
    from pytest_watermark_guard.probing.context import using_run

    if WRONG_MARKER in item.stash:
        return (yield)
    with using_run(run_at(item, item.config.stash[STATE].run)):
        return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    from pytest_watermark_guard.plugin.markers import WRONG_MARKER

    if WRONG_MARKER in item.stash:
        pytest.fail(item.stash[WRONG_MARKER], pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    from pytest_watermark_guard.plugin.markers import run_at
    from pytest_watermark_guard.probing.context import using_run

    # By the markers of the fixture's own scope: a wider fixture must not depend on which test
    # happens to ask for it first.
    with using_run(run_at(request.node, request.config.stash[STATE].run)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    from pytest_watermark_guard.plugin.sending import send_findings
    from pytest_watermark_guard.plugin.tracebacks import hide_our_frames

    if call.excinfo is not None:
        hide_our_frames(call.excinfo, item.config)
    test_report = yield
    send_findings(item, call, test_report, item.config.stash[STATE])
    return test_report


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    from pytest_watermark_guard.plugin.github import GitHubActions
    from pytest_watermark_guard.plugin.html import HtmlSummary
    from pytest_watermark_guard.plugin.known_units import KnownSummary
    from pytest_watermark_guard.plugin.releases import ReleaseSummary
    from pytest_watermark_guard.plugin.summary import Summary

    config = session.config
    if hasattr(config, "workerinput"):
        return
    state = config.stash[STATE]
    run, register = state.run, config.pluginmanager.register
    summary = Summary(config, state)
    # Of several, the last registered has the first word in the terminal.
    if os.environ.get("GITHUB_ACTIONS") == "true":
        register(GitHubActions(summary, os.environ), "watermark-guard-github")
    register(KnownSummary(summary, run.known, state.known_path), "watermark-guard-known")
    if run.against is not None:
        register(ReleaseSummary(summary), "watermark-guard-releases")
    if state.html_path is not None:
        page = HtmlSummary(summary, state.html_path, run.settings)
        register(page, "watermark-guard-html")
    register(summary, "watermark-guard-summary")


# --- fixtures -----------------------------------------------------------------------------------


class Guard:
    """Probes and gates models by the settings of the test that asked for it."""

    @property
    def settings(self) -> Settings:
        """The settings that hold: marker, then command line, then ini file, then defaults."""
        from pytest_watermark_guard.probing.context import current_run

        return current_run().settings

    def probe(self, model: AnyModel, **arguments: Any) -> ProbeReport:
        """Probe a model; arguments as for `pytest_watermark_guard.probe`."""
        __tracebackhide__ = True
        from pytest_watermark_guard.probing.probe import probe

        return probe(model, **arguments)

    def check(self, model: AnyModel, **arguments: Any) -> ProbeReport:
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

    path = named_path(pytestconfig, "key")
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
    from pytest_watermark_guard.plugin.masking import masking

    with masking(request) as mask:
        yield mask
