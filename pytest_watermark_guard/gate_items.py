"""Test items without a test file: ``pytest --wm-model SPEC``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_watermark_guard.context import current_run
from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.models.specs import parse_spec
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

if TYPE_CHECKING:
    from pytest_watermark_guard.gate import Verdict


def check_spec(spec: str, config: pytest.Config) -> None:
    """Raise `ModelSpecError` for a spec of no known form, unless a plugin loads its own forms."""
    if not config.hook.pytest_wm_load_model.get_hookimpls():
        parse_spec(spec)


def collect_gates(session: pytest.Session, specs: Sequence[str]) -> list[pytest.Item]:
    """Make one item for each model, layer and scenario."""
    items: list[pytest.Item] = []
    for spec in specs:
        items += ModelGate.from_parent(session, name=spec, nodeid=spec).collect()
    return items


class ModelGate(pytest.Collector):
    """One model to gate; its items share one probe, made when the first of them runs."""

    _told = False

    def collect(self) -> Iterator[pytest.Item]:
        """Give one item for each layer and scenario of the run's settings."""
        run = current_run()
        for layer in run.settings.layers:
            for scenario in resolve_scenarios(run.settings.scenarios, run.scenarios):
                yield GateItem.from_parent(
                    self, name=f"{layer}-{scenario.name}", layer=layer, scenario=scenario.name
                )

    def verdict(self) -> Verdict:
        """Probe the model, the first time, and judge it; later calls repeat how that ended."""
        outcome = self._outcome
        if isinstance(outcome, WatermarkGuardError):
            # The message says it all; a traceback through us helps nobody.
            pytest.fail(str(outcome), pytrace=False)
        if isinstance(outcome, Exception):
            if self._told:
                name = type(outcome).__name__
                pytest.fail(f"{self.name} raised {name}, see its first item", pytrace=False)
            self._told = True
            raise outcome
        return outcome

    @cached_property
    def _outcome(self) -> Verdict | Exception:
        from pytest_watermark_guard.gate import judge
        from pytest_watermark_guard.probing import probe

        run = current_run()
        capture = self.config.pluginmanager.getplugin("capturemanager")
        try:
            loaded = self.config.hook.pytest_wm_load_model(spec=self.name, config=self.config)
            # Captured, standard error is no terminal, and there would be no progress bar.
            with capture.global_and_fixture_disabled() if capture else nullcontext():
                report = probe(
                    self.name if loaded is None else loaded,
                    name=self.name,
                    stop_at=run.settings.threshold,
                    decide_each=True,  # every item is a verdict
                )
            verdict = judge(report)
        except Exception as error:
            return error
        run.on_verdict(verdict)
        return verdict


class GateItem(pytest.Item):
    """Passes if no unit of one layer is sensitive to one scenario."""

    def __init__(self, layer: str, scenario: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._layer = layer
        self._scenario = scenario
        self.share: Verdict | None = None
        # With `--dist loadgroup` xdist keeps a model's items, and so its probe, in one worker.
        assert isinstance(self.parent, ModelGate)
        if self.config.pluginmanager.hasplugin("xdist"):
            self.add_marker(pytest.mark.xdist_group(self.parent.name))

    @property
    def probe_key(self) -> str:
        """What this item's probe is told by, whichever worker makes it."""
        return self._gate.name

    def setup(self) -> None:
        """Probe: a model that cannot be probed is an error, not a failure."""
        self._gate.verdict()

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
            known=verdict.known.of(*key),
        )
        self.share = share
        if not share.passed:
            pytest.fail(share.story(), pytrace=False)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Name the item in the terminal."""
        return self.config.rootpath, None, f"{self._gate.name} {self.name}"

    @property
    def _gate(self) -> ModelGate:
        assert isinstance(self.parent, ModelGate)
        return self.parent
