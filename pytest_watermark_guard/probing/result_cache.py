"""What probes found whose activations are too many to be kept, or were never kept at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pytest_watermark_guard.probing.activation_cache import ActivationCache
from pytest_watermark_guard.probing.scoring import AllScores
from pytest_watermark_guard.reports.early_stop import EarlyStop
from pytest_watermark_guard.reports.examples import Examples
from pytest_watermark_guard.reports.impact import Impact
from pytest_watermark_guard.reports.probe import ProbeReport


class ProbeMeasurement(NamedTuple):
    """What a probe measured; the rest of its report says what it was asked for."""

    n_images: int
    scores: AllScores
    controls: AllScores
    impact: Mapping[str, Impact]
    notes: tuple[str, ...]
    plan: str
    weights: str
    examples: Examples | None
    early_stop: EarlyStop | None


def load_result(cache: ActivationCache, asked: str) -> ProbeMeasurement | None:
    """Return what was found when the same was asked for, or None."""
    text = cache.result(asked)
    if text is None:
        return None
    kept = ProbeReport.from_json(text)
    return ProbeMeasurement(
        kept.n_images,
        dict(kept.scores),
        dict(kept.controls),
        kept.impact,
        kept.notes,
        kept.precision,
        kept.weights,
        kept.examples,
        kept.early_stop,
    )


def keep_result(cache: ActivationCache, asked: str, found: ProbeMeasurement) -> None:
    """Keep what was found, as a report without a name."""
    report = ProbeReport(
        model="",
        baseline="",
        n_images=found.n_images,
        seed=0,
        scores=found.scores,
        impact=found.impact,
        precision=found.plan,
        notes=found.notes,
        controls=found.controls,
        weights=found.weights,
        examples=found.examples,
        early_stop=found.early_stop,
    )
    cache.keep_result(asked, report.to_json())
