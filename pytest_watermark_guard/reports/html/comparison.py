"""Several models side by side: the part of the page that is a survey."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from pytest_watermark_guard.reports.html.units import Judged
from pytest_watermark_guard.reports.names import short_names
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import TIERS
from pytest_watermark_guard.reports.survey import (
    ClassRanking,
    SurveyReport,
    all_rankings,
    ranking_caution,
    unequal_images,
)
from pytest_watermark_guard.reports.text import listed

SHOWN = 10  # classes at either end of a ranking


class RankedClass(NamedTuple):
    """A class's A over all models, under one scenario."""

    scenario: str
    label: str
    mean: float
    lowest: float
    highest: float


def survey_of(judged: Sequence[Judged]) -> SurveyReport | None:
    """Return the first probe of each model, or None where there is one model only.

    Later ones are of the same model with something taken out of it or drawn otherwise.
    """
    short = short_names(probe.report.model for probe in judged)
    first: dict[str, ProbeReport] = {}
    for probe in judged:
        first.setdefault(short[probe.report.model], probe.report)
    return SurveyReport(first) if len(first) > 1 else None


def rankings(survey: SurveyReport) -> list[ClassRanking]:
    """Return the classes' ranking under each scenario, where two models have the same classes."""
    return [ranking for ranking in all_rankings(survey) if len(ranking.models) > 1]


def ranked_classes(ranking: ClassRanking) -> Iterator[RankedClass]:
    """Give the classes that fire most on the marks, and those that are silenced most."""
    for index in ranking.ends(SHOWN):
        areas = ranking.auroc[:, index]
        name = ranking.names[index]
        label = f"class {index}" if name == str(index) else f"{name} [{index}]"
        yield RankedClass(ranking.scenario, label, areas.mean(), areas.min(), areas.max())


def cautions(survey: SurveyReport, ranked: Iterable[ClassRanking]) -> list[str]:
    """Say what the comparison must not be read without."""
    silent = [
        f"{layer} under {scenario}"
        for layer in survey.layers
        for scenario in survey.scenarios
        if (counts := survey.counts(layer, scenario, TIERS[0]))
        and not any(number for number, _ in counts.values())
    ]
    sentences = [unequal_images(survey)]
    if silent:
        sentences.append(f"No unit of any model reaches d = {TIERS[0]:g}: {listed(silent)}.")
    sentences += map(ranking_caution, ranked)
    return [caution for caution in dict.fromkeys(sentences) if caution]
