"""Fail the build when a vision model has learned to react to watermarks.

Public names are imported when they are first used: ``import pytest_watermark_guard`` imports
neither torch nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pytest_watermark_guard.version import __version__ as __version__

_PUBLIC_NAMES = {
    "exploring.search": ("search",),
    "exploring.surface": ("surface",),
    "exploring.survey": ("survey",),
    "images.batches": ("ProbingBatch", "ProbingBatches"),
    "images.builtin": ("builtin_images",),
    "mitigation.apply": ("applied_mask", "apply_mask", "remove_mask"),
    "mitigation.erasure": ("FeatureErasure",),
    "mitigation.fold": ("fold_mask",),
    "mitigation.mask": ("FeatureMask",),
    "mitigation.reaudit": ("Reaudit", "reaudit"),
    "mitigation.sweep": ("sweep",),
    "mitigation.sweep_report": ("SweepReport",),
    "models.loading.loading": ("load_model",),
    "models.loading.preprocessing": ("Preprocessing",),
    "models.reading.activations": ("extract_features",),
    "probing.batches": ("probing_batches",),
    "probing.gate": ("assert_not_watermark_sensitive", "judge"),
    "probing.marked_folder": ("write_marked_folder",),
    "probing.probe": ("probe",),
    "reports.html.page": ("write_html",),
    "reports.impact": ("Impact",),
    "reports.probe": ("ProbeReport",),
    "reports.releases": ("Comparison", "compare"),
    "reports.scores": ("Scores", "SensitiveUnit"),
    "reports.search": ("SearchReport",),
    "reports.terminal": ("render_reports",),
    "reports.surface": ("SurfaceReport",),
    "reports.survey": ("SurveyReport",),
    "reports.verdict": ("Verdict",),
    "statistics.auroc": ("auroc",),
    "watermarks.scenarios": ("SCENARIOS", "AnyScenario", "PairedFolder", "Scenario"),
}
_HOMES = {name: module for module, names in _PUBLIC_NAMES.items() for name in names}

if TYPE_CHECKING:
    from . import ownership as ownership
    from .exploring.search import search as search
    from .exploring.surface import surface as surface
    from .exploring.survey import survey as survey
    from .images.batches import ProbingBatch as ProbingBatch, ProbingBatches as ProbingBatches
    from .images.builtin import builtin_images as builtin_images
    from .mitigation.apply import (
        applied_mask as applied_mask,
        apply_mask as apply_mask,
        remove_mask as remove_mask,
    )
    from .mitigation.erasure import FeatureErasure as FeatureErasure
    from .mitigation.fold import fold_mask as fold_mask
    from .mitigation.mask import FeatureMask as FeatureMask
    from .mitigation.reaudit import Reaudit as Reaudit, reaudit as reaudit
    from .mitigation.sweep import sweep as sweep
    from .mitigation.sweep_report import SweepReport as SweepReport
    from .models.loading.loading import load_model as load_model
    from .models.loading.preprocessing import Preprocessing as Preprocessing
    from .models.reading.activations import extract_features as extract_features
    from .probing.batches import probing_batches as probing_batches
    from .probing.gate import (
        assert_not_watermark_sensitive as assert_not_watermark_sensitive,
        judge as judge,
    )
    from .probing.marked_folder import write_marked_folder as write_marked_folder
    from .probing.probe import probe as probe
    from .reports.html.page import write_html as write_html
    from .reports.impact import Impact as Impact
    from .reports.probe import ProbeReport as ProbeReport
    from .reports.releases import Comparison as Comparison, compare as compare
    from .reports.scores import Scores as Scores, SensitiveUnit as SensitiveUnit
    from .reports.search import SearchReport as SearchReport
    from .reports.surface import SurfaceReport as SurfaceReport
    from .reports.survey import SurveyReport as SurveyReport
    from .reports.terminal import render_reports as render_reports
    from .reports.verdict import Verdict as Verdict
    from .statistics.auroc import auroc as auroc
    from .watermarks.scenarios import (
        SCENARIOS as SCENARIOS,
        AnyScenario as AnyScenario,
        PairedFolder as PairedFolder,
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
    return sorted({*_HOMES, "__version__", "ownership"})
