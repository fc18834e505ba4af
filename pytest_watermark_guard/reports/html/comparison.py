"""Several models side by side: the part of the page that is a survey."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pytest_watermark_guard.reports.html.units import Judged
from pytest_watermark_guard.reports.scores import TIERS
from pytest_watermark_guard.reports.survey import (
    ClassRanking,
    SurveyReport,
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
    reports = {one.report.model: one.report for one in reversed(judged)}
    first = {name: reports[name] for name in dict.fromkeys(one.report.model for one in judged)}
    return SurveyReport(first) if len(first) > 1 else None


def rankings(survey: SurveyReport) -> Iterator[ClassRanking]:
    """Give the classes' ranking under each scenario, where two models have the same classes."""
    for scenario in survey.scenarios:
        if any(("logits", scenario) in report.scores for report in survey.reports.values()):
            ranking = survey.classes(scenario)
            if len(ranking.models) > 1:
                yield ranking


def ranked_classes(ranking: ClassRanking) -> Iterator[RankedClass]:
    """Give the classes that fire most on the marks, and those that are silenced most."""
    for index in ranking.ends(SHOWN):
        areas = ranking.auroc[:, index]
        name = ranking.names[index]
        label = f"class {index}" if name == str(index) else f"{name} [{index}]"
        ends = float(areas.min()), float(areas.max())
        yield RankedClass(ranking.scenario, label, float(areas.mean()), *ends)


def cautions(survey: SurveyReport) -> list[str]:
    """Say what the comparison must not be read without."""
    return list(dict.fromkeys(_cautions(survey)))  # one that holds of every scenario is said once


def _cautions(survey: SurveyReport) -> Iterator[str]:
    if (caution := unequal_images(survey)) is not None:
        yield caution
    silent = [
        f"{layer} under {scenario}"
        for layer in survey.layers
        for scenario in survey.scenarios
        if (counts := survey.counts(layer, scenario, TIERS[0]))
        and not any(number for number, _ in counts.values())
    ]
    if silent:
        yield f"No unit of any model reaches d = {TIERS[0]:g}: {listed(silent)}."
    for caution in map(ranking_caution, rankings(survey)):
        if caution is not None:
            yield caution
