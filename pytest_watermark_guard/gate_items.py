"""Test items without a test file: ``pytest --wm-model SPEC``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.context import Run, current_run
from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.models.specs import parse_spec
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

if TYPE_CHECKING:
    from pytest_watermark_guard.gate import Verdict


def collect_gates(session: pytest.Session, specs: Sequence[str], run: Run) -> list[pytest.Item]:
    """Make one item for each model, layer and scenario.

    Raises
    ------
    ModelSpecError
        If a spec is of no known form, and no plugin offers to load forms of its own.
    """
    offered = session.config.hook.pytest_wm_load_model.get_hookimpls()
    items: list[pytest.Item] = []
    for spec in specs:
        if not offered:
            parse_spec(spec)
        gate = ModelGate.from_parent(session, name=spec, nodeid=spec)
        items += gate.items(run)
    return items


class ModelGate(pytest.Collector):
    """One model to gate; its items share one probe, made when the first of them runs."""

    def collect(self) -> Iterator[pytest.Item]:
        """Give the items of the run's settings."""
        return self.items(current_run())

    def items(self, run: Run) -> Iterator[pytest.Item]:
        """Give one item for each layer and scenario."""
        for layer in run.settings.layers:
            for scenario in resolve_scenarios(run.settings.scenarios, run.scenarios):
                yield GateItem.from_parent(
                    self, name=f"{layer}-{scenario.name}", layer=layer, scenario=scenario.name
                )

    def verdict(self) -> Verdict:
        """Probe the model, the first time, and judge it; what went wrong then is raised again."""
        outcome = self._outcome
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @cached_property
    def _outcome(self) -> Verdict | Exception:
        from pytest_watermark_guard.gate import judge
        from pytest_watermark_guard.probing import probe

        settings = current_run().settings
        try:
            loaded = self.config.hook.pytest_wm_load_model(spec=self.name, config=self.config)
            report = probe(self.name if loaded is None else loaded, name=self.name)
            return judge(report, settings.threshold, settings.allow)
        except Exception as error:
            return error


class GateItem(pytest.Item):
    """Passes if no unit of one layer is sensitive to one scenario."""

    def __init__(self, layer: str, scenario: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._layer = layer
        self._scenario = scenario
        # With `--dist loadgroup` xdist keeps a model's items, and so its probe, in one worker.
        assert isinstance(self.parent, ModelGate)
        if self.config.pluginmanager.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(self.parent.name))

    def setup(self) -> None:
        """Probe: a model that cannot be probed is an error, not a failure."""
        try:
            self._gate.verdict()
        except WatermarkGuardError as error:
            # The message says it all; a traceback through us helps nobody.
            pytest.fail(str(error), pytrace=False)

    def runtest(self) -> None:
        """Judge this item's share of the report."""
        verdict = self._gate.verdict()
        key = self._layer, self._scenario
        if key not in verdict.report.scores:
            pytest.skip(f"{self._layer}: {'; '.join(verdict.report.notes)}")
        share = replace(
            verdict,
            report=replace(verdict.report, scores={key: verdict.report.scores[key]}),
            failing=tuple(u for u in verdict.failing if (u.layer, u.scenario) == key),
            allowed=tuple(a for a in verdict.allowed if (a[0].layer, a[0].scenario) == key),
        )
        if not share.passed:
            pytest.fail(share.story(), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the item in the terminal."""
        return self.config.rootpath, None, f"{self._gate.name} {self.name}"

    @property
    def _gate(self) -> ModelGate:
        assert isinstance(self.parent, ModelGate)
        return self.parent
