"""Hooks that conftest files and other plugins may implement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.watermarks.scenarios import AnyScenario


@pytest.hookspec
def pytest_wm_scenarios(config: pytest.Config) -> Iterable[AnyScenario]:  # type: ignore[empty-body]
    """Offer scenarios of your own by name, to ``--wm-scenarios`` and to every probe.

    Called once, when pytest starts: implement it in a plugin or in the first conftest.py.

    Example::

        import pytest_watermark_guard as wm

        def pytest_wm_scenarios(config):
            return [wm.Scenario("stock", ["©", "STOCK"], length=2, opacity=0.4)]
    """


@pytest.hookspec(firstresult=True)
def pytest_wm_load_model(spec: str, config: pytest.Config) -> nn.Module | None:
    """Load the model of a ``--wm-model`` spec of your own; return None for others.

    Example::

        def pytest_wm_load_model(spec, config):
            if spec.startswith("registry:"):
                return my_registry.load(spec.removeprefix("registry:"))
    """


@pytest.hookspec
def pytest_wm_report(report: ProbeReport, config: pytest.Config) -> None:
    """Receive every probe's report, in the process that prints the summary.

    Example::

        def pytest_wm_report(report, config):
            mlflow.log_metric("max_d", max(s.differentiability.max() for s in report))
    """
