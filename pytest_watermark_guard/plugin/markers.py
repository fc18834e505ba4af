"""The plugin's markers: which settings hold at a test, and what happens to wrong arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest

from pytest_watermark_guard.errors import SettingsError, WatermarkGuardError
from pytest_watermark_guard.plugin.mask_marker import MASK_MARKER, SIGNATURE, prepare_item
from pytest_watermark_guard.reports.log_lines import inert
from pytest_watermark_guard.settings import Settings
from pytest_watermark_guard.watermarks.scenarios import resolve_scenarios

if TYPE_CHECKING:
    from pytest_watermark_guard.probing.context import Run

MARKER = "wm_settings"
WRONG_MARKER = pytest.StashKey[str]()
"""Why an item of an xdist worker is marked wrongly."""


def register_markers(config: pytest.Config) -> None:
    """Have ``pytest --markers`` and ``--strict-markers`` know them."""
    keywords = ", ".join(f"{each.name}=..." for each in fields(Settings))
    for line in (
        f"{MARKER}({keywords}): settings of the watermark probes that this test makes.",
        f"{SIGNATURE}: the model that the named fixture gives has its most watermark-sensitive "
        "features set to zero in this test (or threshold= or units= instead of fraction=), or "
        "what is linearly correlated with the marks taken out of them (method='erase').",
    ):
        config.addinivalue_line("markers", line)


def run_at(node: pytest.Item | pytest.Collector, run: Run) -> Run:
    """Return the run with the settings that hold at a node: those of its markers come first."""
    settings = run.settings
    for marker in reversed(list(node.iter_markers(MARKER))):  # the closest marker wins
        if marker.args:
            raise SettingsError("takes keyword arguments only")
        settings = settings.override(**marker.kwargs)
    return replace(run, settings=settings)


def check_settings_markers(items: Sequence[pytest.Item], run: Run) -> None:
    """End the run if a test's settings cannot be used."""
    for item in items:
        with _marked_rightly(item, MARKER):
            resolve_scenarios(run_at(item, run).settings.scenarios, run.scenarios)


def prepare_masks(items: Sequence[pytest.Item], run: Run) -> None:
    """Have the models of tests with the marker ``wm_mask`` masked; end the run if one is wrong."""
    for item in items:
        with _marked_rightly(item, MASK_MARKER):
            prepare_item(item, run.scenarios)


@contextmanager
def _marked_rightly(item: pytest.Item, marker: str) -> Iterator[None]:
    try:
        yield
    except WatermarkGuardError as error:
        message = inert(f"{item.nodeid}: @pytest.mark.{marker}: {error}")
        if not hasattr(item.config, "workerinput"):
            raise pytest.UsageError(message) from None
        # A worker cannot end the run: there, the test that is marked wrongly errs.
        item.stash[WRONG_MARKER] = message
