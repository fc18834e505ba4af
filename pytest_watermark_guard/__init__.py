"""Fail the build when a vision model has learned to react to watermarks.

Public names are imported when they are first used: ``import pytest_watermark_guard`` imports
neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pytest_watermark_guard.version import __version__ as __version__

_HOMES = {
    "AnyScenario": "watermarks.scenarios",
    "FeatureErasure": "mitigation.erasure",
    "FeatureMask": "mitigation.mask",
    "Impact": "reports.impact",
    "PairedFolder": "watermarks.scenarios",
    "Preprocessing": "models.loading.preprocessing",
    "ProbeReport": "reports.probe",
    "ProbingBatch": "images.batches",
    "ProbingBatches": "images.batches",
    "Reaudit": "mitigation.reaudit",
    "SCENARIOS": "watermarks.scenarios",
    "Scenario": "watermarks.scenarios",
    "Scores": "reports.scores",
    "SearchReport": "reports.search",
    "SensitiveUnit": "reports.scores",
    "SurfaceReport": "reports.surface",
    "SurveyReport": "reports.survey",
    "SweepReport": "mitigation.sweep_report",
    "Verdict": "reports.verdict",
    "applied_mask": "mitigation.apply",
    "apply_mask": "mitigation.apply",
    "assert_not_watermark_sensitive": "probing.gate",
    "auroc": "statistics.auroc",
    "builtin_images": "images.builtin",
    "extract_features": "models.reading.activations",
    "fold_mask": "mitigation.fold",
    "judge": "probing.gate",
    "load_model": "models.loading.loading",
    "probe": "probing.probe",
    "probing_batches": "probing.batches",
    "reaudit": "mitigation.reaudit",
    "remove_mask": "mitigation.apply",
    "search": "exploring.search",
    "surface": "exploring.surface",
    "survey": "exploring.survey",
    "sweep": "mitigation.sweep",
    "write_html": "reports.html.page",
    "write_marked_folder": "probing.marked_folder",
}

if TYPE_CHECKING:
    from pytest_watermark_guard import ownership as ownership
    from pytest_watermark_guard.exploring.search import (
        search as search,
    )
    from pytest_watermark_guard.exploring.surface import (
        surface as surface,
    )
    from pytest_watermark_guard.exploring.survey import survey as survey
    from pytest_watermark_guard.images.batches import ProbingBatch as ProbingBatch
    from pytest_watermark_guard.images.batches import ProbingBatches as ProbingBatches
    from pytest_watermark_guard.images.builtin import builtin_images as builtin_images
    from pytest_watermark_guard.mitigation.apply import (
        applied_mask as applied_mask,
    )
    from pytest_watermark_guard.mitigation.apply import (
        apply_mask as apply_mask,
    )
    from pytest_watermark_guard.mitigation.apply import (
        remove_mask as remove_mask,
    )
    from pytest_watermark_guard.mitigation.erasure import FeatureErasure as FeatureErasure
    from pytest_watermark_guard.mitigation.fold import fold_mask as fold_mask
    from pytest_watermark_guard.mitigation.mask import FeatureMask as FeatureMask
    from pytest_watermark_guard.mitigation.reaudit import (
        Reaudit as Reaudit,
    )
    from pytest_watermark_guard.mitigation.reaudit import (
        reaudit as reaudit,
    )
    from pytest_watermark_guard.mitigation.sweep import sweep as sweep
    from pytest_watermark_guard.mitigation.sweep_report import SweepReport as SweepReport
    from pytest_watermark_guard.models.loading.loading import load_model as load_model
    from pytest_watermark_guard.models.loading.preprocessing import Preprocessing as Preprocessing
    from pytest_watermark_guard.models.reading.activations import (
        extract_features as extract_features,
    )
    from pytest_watermark_guard.probing.batches import probing_batches as probing_batches
    from pytest_watermark_guard.probing.gate import (
        assert_not_watermark_sensitive as assert_not_watermark_sensitive,
    )
    from pytest_watermark_guard.probing.gate import judge as judge
    from pytest_watermark_guard.probing.marked_folder import (
        write_marked_folder as write_marked_folder,
    )
    from pytest_watermark_guard.probing.probe import probe as probe
    from pytest_watermark_guard.reports.html.page import write_html as write_html
    from pytest_watermark_guard.reports.impact import Impact as Impact
    from pytest_watermark_guard.reports.probe import ProbeReport as ProbeReport
    from pytest_watermark_guard.reports.scores import Scores as Scores
    from pytest_watermark_guard.reports.scores import SensitiveUnit as SensitiveUnit
    from pytest_watermark_guard.reports.search import SearchReport as SearchReport
    from pytest_watermark_guard.reports.surface import SurfaceReport as SurfaceReport
    from pytest_watermark_guard.reports.survey import SurveyReport as SurveyReport
    from pytest_watermark_guard.reports.verdict import Verdict as Verdict
    from pytest_watermark_guard.statistics.auroc import auroc as auroc
    from pytest_watermark_guard.watermarks.scenarios import (
        SCENARIOS as SCENARIOS,
    )
    from pytest_watermark_guard.watermarks.scenarios import (
        AnyScenario as AnyScenario,
    )
    from pytest_watermark_guard.watermarks.scenarios import (
        PairedFolder as PairedFolder,
    )
    from pytest_watermark_guard.watermarks.scenarios import (
        Scenario as Scenario,
    )


def __getattr__(name: str) -> Any:
    if name == "ownership":
        return importlib.import_module(f"{__name__}.ownership")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "ownership"})
