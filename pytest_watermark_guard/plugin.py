"""pytest's door: options, marker, fixtures, hooks. Thin, and without torch at import."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard import hookspec
from pytest_watermark_guard.context import Run, current_run, using_run
from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.settings import PRECISIONS, Settings, parse_setting
from pytest_watermark_guard.watermarks.scenarios import SCENARIOS, AnyScenario, resolve_scenarios

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_watermark_guard.batches import ProbingBatches
    from pytest_watermark_guard.report import ProbeReport

MARKER = "wm_settings"
# setting -> (metavar, help); each is --wm-NAME on the command line and wm_NAME in an ini file
SETTINGS = {
    "images": ("FOLDER", "baseline images without watermarks (default: the built-in set)"),
    "threshold": ("D", "units with d >= D fail the gate, 0.5 < D <= 1 (default: 0.95)"),
    "scenarios": ("NAMES", f"comma-separated (default: {','.join(SCENARIOS)})"),
    "layers": ("NAMES", "logits, features, or names of modules (default: logits,features)"),
    "device": ("DEVICE", "auto, cpu, cuda, cuda:1 ... (default: auto)"),
    "precision": ("NAME", f"{', '.join(PRECISIONS)} (default: auto)"),
    "max_images": ("N", "probe with a random subset of N images (default: all)"),
    "seed": ("N", "seed of the watermarks and the subset (default: 17)"),
    "allow": ("UNIT=REASON", "accept a known unit, as in 'logits:carton=harmless'; repeatable"),
}
_REPEATABLE = ("allow",)


@dataclass
class GuardState:
    """What the plugin knows of one pytest run."""

    run: Run
    models: tuple[str, ...]
    only_models: bool
    show_report: bool
    json_path: Path | None
    # Reports finished in this process since the last phase of a test was reported.
    pending: list[ProbeReport] = field(default_factory=list)
    # Reports of the whole run, by their JSON, where the summary is printed.
    reports: dict[str, ProbeReport] = field(default_factory=dict)


STATE = pytest.StashKey[GuardState]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("watermark-guard", "watermark sensitivity of vision models")

    def add(name: str, help_text: str, ini_type: Any = None, **options: Any) -> None:
        group.addoption(f"--wm-{name.replace('_', '-')}", help=help_text, default=None, **options)
        default = {"bool": False, "linelist": []}.get(ini_type)
        parser.addini(f"wm_{name}", f"as --wm-{name.replace('_', '-')}", ini_type, default)

    add(
        "model",
        "gate a model, no test file needed: torchvision:NAME[@WEIGHTS], timm:NAME, hf:NAME, "
        "package.module:factory or file.pt2, with ?weights=FILE; repeatable",
        "linelist",
        action="append",
        metavar="SPEC",
    )
    add("report", "print a table for every probe", "bool", action="store_true")
    add("json", "write all probes' numbers to a JSON file", metavar="FILE")
    for name, (metavar, help_text) in SETTINGS.items():
        if name in _REPEATABLE:
            add(name, help_text, "linelist", action="append", metavar=metavar)
        else:
            add(name, help_text, metavar=metavar)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspec)


def pytest_configure(config: pytest.Config) -> None:
    known_settings = ", ".join(f"{f.name}=..." for f in fields(Settings))
    config.addinivalue_line(
        "markers",
        f"{MARKER}({known_settings}): settings of the watermark probes that this test makes.",
    )
    models = config.getoption("wm_model") or config.getini("wm_model") or []
    json_path = config.getoption("wm_json") or config.getini("wm_json")
    try:
        scenarios = _known_scenarios(config)
        settings = _settings(config)
        resolve_scenarios(settings.scenarios, scenarios)
    except WatermarkGuardError as error:
        raise pytest.UsageError(f"watermark guard: {error}") from None
    state = GuardState(
        Run(settings, scenarios, _worker_number(config)),
        tuple(dict.fromkeys(models)),
        # On the command line, models alone: "gate this checkpoint"; beside paths, or in an ini
        # file: gate it along with the tests.
        only_models=bool(config.getoption("wm_model"))
        and config.args_source is not pytest.Config.ArgsSource.ARGS,
        show_report=bool(config.getoption("wm_report") or config.getini("wm_report")),
        json_path=config.invocation_params.dir / json_path if json_path else None,
    )
    state.run = Run(settings, scenarios, state.run.worker, state.pending.append)
    config.stash[STATE] = state


def _known_scenarios(config: pytest.Config) -> Mapping[str, AnyScenario]:
    offered = [s for group in config.hook.pytest_wm_scenarios(config=config) for s in group]
    return (
        {**SCENARIOS, **{s.name: s for s in resolve_scenarios(offered)}} if offered else SCENARIOS
    )


def _settings(config: pytest.Config) -> Settings:
    given = {}
    for name in SETTINGS:
        text = config.getoption(f"wm_{name}")
        if text is None:
            # An ini value that was never set reads as None, "" or [], by pytest version and type.
            text = config.getini(f"wm_{name}") or None
            if name == "images" and text and config.inipath:
                text = str(config.inipath.parent / Path(text).expanduser())
        if text is not None:
            given[name] = parse_setting(name, text)
    return Settings().override(**given)


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    state = config.stash[STATE]
    for item in items:
        for marker in item.iter_markers(MARKER):
            try:
                if marker.args:
                    raise WatermarkGuardError("takes keyword arguments only")
                changed = state.run.settings.override(**marker.kwargs)
                resolve_scenarios(changed.scenarios, state.run.scenarios)
            except WatermarkGuardError as error:
                raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.{MARKER}: {error}") from None
    if state.models:
        from pytest_watermark_guard.gate_items import collect_gates

        try:
            items += collect_gates(session, state.models, state.run)
        except WatermarkGuardError as error:
            raise pytest.UsageError(f"watermark guard: {error}") from None


# --- running ------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    run = item.config.stash[STATE].run
    settings = run.settings
    for marker in reversed(list(item.iter_markers(MARKER))):  # the closest marker wins
        settings = settings.override(**marker.kwargs)
    with using_run(Run(settings, run.scenarios, run.worker, run.on_report)):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    if fixturedef.scope == "function":
        return (yield)
    # A wider fixture must not depend on which test happens to ask for it first.
    with using_run(request.config.stash[STATE].run):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    test_report = yield
    pending = item.config.stash[STATE].pending
    if pending:
        # On the test report, as text: so it crosses from a worker process without files.
        test_report.wm_reports = [report.to_json() for report in pending]  # type: ignore[attr-defined]
        pending.clear()
    return test_report


class _Summary:
    """Gathers reports where the run is summed up: not in an xdist worker."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._state = config.stash[STATE]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        texts: list[str] = getattr(report, "wm_reports", [])
        for text in texts:
            if text in self._state.reports:  # a rerun, or a worker that probed the same model
                continue
            from pytest_watermark_guard.report import ProbeReport

            probe_report = ProbeReport.from_json(text)
            self._state.reports[text] = probe_report
            self._config.hook.pytest_wm_report(report=probe_report, config=self._config)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if self._state.json_path is None:
            return
        from pytest_watermark_guard.reporting.json_file import write_json

        reports = list(self._state.reports.values())
        write_json(self._state.json_path, reports, self._state.run.settings.threshold)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        state = self._state
        if state.json_path is not None:
            terminalreporter.write_line(f"watermark guard: wrote {state.json_path}")
        if not state.show_report:
            return
        terminalreporter.section("watermark sensitivity")
        if not state.reports:
            terminalreporter.write_line("no probe was made")
            return
        from pytest_watermark_guard.reporting.terminal import render_reports

        writer = terminalreporter._tw
        encoding = (getattr(writer._file, "encoding", None) or "utf-8").lower()
        terminalreporter.write(
            render_reports(
                list(state.reports.values()),
                state.run.settings.threshold,
                width=writer.fullwidth,
                color=writer.hasmarkup,
                ascii_only=not encoding.startswith("utf"),
            )
        )


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(_Summary(session.config), "watermark-guard-summary")


# --- fixtures -----------------------------------------------------------------------------------


class Guard:
    """Probes and gates models by the settings of the test that asked for it."""

    @property
    def settings(self) -> Settings:
        """The settings that hold: marker, then command line, then ini file, then defaults."""
        return current_run().settings

    def probe(self, model: nn.Module | str, **arguments: Any) -> ProbeReport:
        """Probe a model; arguments as for `pytest_watermark_guard.probe`."""
        from pytest_watermark_guard.probing import probe

        return probe(model, **arguments)

    def check(self, model: nn.Module | str, **arguments: Any) -> ProbeReport:
        """Fail if a model is sensitive; as `assert_not_watermark_sensitive`."""
        __tracebackhide__ = True
        from pytest_watermark_guard.gate import assert_not_watermark_sensitive

        return assert_not_watermark_sensitive(model, **arguments)


@pytest.fixture
def wm_guard() -> Guard:
    """Probe (``wm_guard.probe(model)``) and gate (``wm_guard.check(model)``) models."""
    return Guard()


@pytest.fixture(scope="session")
def wm_device(pytestconfig: pytest.Config) -> torch.device:
    """The device that probes run on: --wm-device, and under xdist this worker's GPU."""
    from pytest_watermark_guard.device import resolve_device

    run = pytestconfig.stash[STATE].run
    return resolve_device(run.settings.device, run.worker)


@pytest.fixture
def wm_batches() -> ProbingBatches:
    """Batches of baseline images with their watermarked copies, ImageNet-normalised, 224 px.

    ``for batch in wm_batches`` gives ``batch.images`` and ``batch.marked["chinese"]``;
    ``wm_batches.for_model(model)`` preprocesses them for a model.
    """
    from pytest_watermark_guard.batches import probing_batches

    return probing_batches()
