"""Test items without a test file: ``pytest --wm-model SPEC``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.errors import (
    EngineError,
    ModelError,
    NotCheckedError,
    WatermarkGuardError,
)
from pytest_watermark_guard.plugin.choosing import Gates, gate_path
from pytest_watermark_guard.plugin.imports import imported_for_good
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.reports.log_lines import inert
from pytest_watermark_guard.reports.names import asked_layer
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

if TYPE_CHECKING:
    from torch import nn

    from pytest_watermark_guard.probing.context import Run
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.verdict import Verdict

# Reports by an engine's workers, or why there is none, by the model's spec.
_ENGINE_OUTCOMES = pytest.StashKey["dict[str, ProbeReport | str]"]()


def gates_of(run: Run) -> Gates:
    """Return layer and scenario of each gate that a model has under a run's settings, by name."""
    # Predictions are made of logits alone, whatever else is probed.
    layers = ("logits",) if run.settings.gates_predictions else run.settings.layers
    scenarios = resolve_scenarios(run.settings.scenarios, run.scenarios)
    places = [(layer, scenario.name) for layer in layers for scenario in scenarios]
    return {f"{layer}-{scenario}": (layer, scenario) for layer, scenario in places}


def collect_models(
    session: pytest.Session, gates: Mapping[str, Gates]
) -> Iterator[pytest.Collector]:
    """Give a collector for each model whose gates are collected."""
    for spec, of_model in gates.items():
        path = gate_path(session.config, spec)
        yield ModelGate.from_parent(session, name=spec, nodeid=spec, path=path, gates=of_model)


class _InRootFolder:
    """Has the hooks of the root folder: its path is no file in any other."""

    session: pytest.Session

    @property
    def ihook(self) -> Any:
        """The hooks that pytest calls for it."""
        return self.session.ihook


class ModelGate(_InRootFolder, pytest.Collector):
    """One model to gate; its items share one probe, made when the first of them runs."""

    def __init__(self, gates: Gates, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._gates = gates
        self._reporting_item: GateItem | None = None

    def collect(self) -> Iterator[pytest.Item]:
        """Give one item for each layer and scenario of the run's settings that is asked for."""
        for name, (layer, scenario) in self._gates.items():
            nodeid = f"{self.nodeid}::{name}"
            yield GateItem.from_parent(
                self, name=name, nodeid=nodeid, layer=layer, scenario=scenario
            )

    def verdict(self, item: GateItem) -> Verdict:
        """Probe the model, the first time, and judge it; one item alone says why it cannot be."""
        outcome = self._outcome
        if not isinstance(outcome, Exception):
            return outcome
        self._reporting_item = self._reporting_item or item
        if item is not self._reporting_item:
            name = type(outcome).__name__
            pytest.fail(f"not probed ({name}), see {self._reporting_item.name}", pytrace=False)
        if isinstance(outcome, WatermarkGuardError) and not isinstance(outcome, ModelError):
            # The message says it all; a traceback through us helps nobody.
            pytest.fail(inert(str(outcome)), pytrace=False)
        raise outcome

    @cached_property
    def _outcome(self) -> Verdict | Exception:
        with imported_for_good():
            from pytest_watermark_guard.probing.gate import judge

        capture = self.config.pluginmanager.getplugin("capturemanager")
        try:
            # Captured, standard error is no terminal, and there would be no progress bar.
            with capture.global_and_fixture_disabled() if capture else nullcontext():
                report = self._probe()
            verdict = judge(report)
        except Exception as error:
            return error
        current_run().on_verdict(verdict)
        return verdict

    def _probe(self) -> ProbeReport:
        from pytest_watermark_guard.probing.gate import gate_arguments
        from pytest_watermark_guard.probing.probe import probe

        run = current_run()
        # Every item is a verdict.
        arguments: dict[str, Any] = {**gate_arguments(run.settings), "decide_each": True}
        outcome = self._by_engine(run, arguments)
        if outcome is None:
            return probe(self._model(), name=self.name, **arguments)
        if isinstance(outcome, str):
            raise WatermarkGuardError(outcome)
        run.on_report(outcome)
        return outcome

    def _by_engine(self, run: Run, arguments: Mapping[str, Any]) -> ProbeReport | str | None:
        """Return an engine's report, or why there is none; the first gate has all models probed.

        A single model is not sent away as a whole: its images are shared out. Neither is any from
        a worker of xdist, which does not know what the others do.
        """
        engine = run.settings.engine
        items = (item for item in self.session.items if isinstance(item, GateItem))
        gates = dict.fromkeys(item.gate for item in items)
        if engine is None or len(gates) == 1 or hasattr(self.config, "workerinput"):
            return None
        if _ENGINE_OUTCOMES not in self.session.stash:
            from pytest_watermark_guard.exploring.survey import probed_by_engine

            models = {}
            for gate in gates:
                # One that cannot be had, or is skipped, says so in its own turn.
                with suppress(Exception, pytest.skip.Exception, pytest.fail.Exception):
                    models[gate.name] = gate._model()
            try:
                outcomes = dict(probed_by_engine(engine, models, None, arguments, progress=True))
            except EngineError as error:
                outcomes = dict.fromkeys(models, str(error))
            self.session.stash[_ENGINE_OUTCOMES] = outcomes
        return self.session.stash[_ENGINE_OUTCOMES].get(self.name)

    def _model(self) -> str | nn.Module:
        loaded = self.config.hook.pytest_wm_load_model(spec=self.name, config=self.config)
        return self.name if loaded is None else loaded


def _fail_unchecked(verdict: Verdict) -> None:
    """Fail without a traceback through us; the error is the context, for `sending` alone."""
    try:
        raise NotCheckedError(verdict.sentence(), verdict)
    except NotCheckedError:
        # Or pytest would print both.
        raise pytest.fail.Exception(verdict.story(), pytrace=False) from None


class GateItem(_InRootFolder, pytest.Item):
    """Passes if no unit of one layer is sensitive to one scenario."""

    def __init__(self, layer: str, scenario: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._layer = layer
        self._scenario = scenario
        self.part: Verdict | None = None

    def setup(self) -> None:
        """Probe: a model that cannot be probed is an error, not a failure."""
        self.gate.verdict(self)

    def runtest(self) -> None:
        """Judge this item's part of the report."""
        from pytest_watermark_guard.probing.cautions import warn_of

        verdict = self.gate.verdict(self)
        report = verdict.report
        places = [(asked_layer(layer), scenario) for layer, scenario in report.scores]
        if (self._layer, self._scenario) not in places:
            pytest.skip(f"{self._layer}: {'; '.join(report.notes)}")
        self.part = verdict.restrict_to(self._layer, self._scenario)
        if self.part.outcome == "failed":
            pytest.fail(self.part.story(), pytrace=False)
        if not self.part.passed:
            _fail_unchecked(self.part)
        warn_of(self.part, stacklevel=1)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the item in the terminal."""
        return self.config.rootpath / self.gate.name, None, f"{self.gate.name} {self.name}"

    @property
    def gate(self) -> ModelGate:
        """Its model."""
        assert isinstance(self.parent, ModelGate)
        return self.parent
