"""A survey of many models as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.report import TIERS
from pytest_watermark_guard.reporting.drawing import Style, drawn, table
from pytest_watermark_guard.reporting.survey_words import (
    ranked_over,
    ranking_caution,
    unequal_images,
)
from pytest_watermark_guard.reporting.text import count, printable

if TYPE_CHECKING:
    from pytest_watermark_guard.surveying import SurveyReport

_SHOWN = 10  # classes at either end of the ranking


def render_survey(
    survey: SurveyReport, *, width: int = 80, color: bool = False, ascii_only: bool = False
) -> str:
    """Draw the tables of a survey; returns lines, the last one ended."""
    style = Style(width, ascii_only)
    return drawn(_parts(survey, style), style, color)


def _parts(survey: SurveyReport, style: Style) -> Iterator[RenderableType]:
    title = f"Survey of {count(len(survey.reports), 'model')}"
    yield Text(title if survey.reports else "Could not be probed", style="bold")
    for model, reason in survey.failures.items():
        told = printable(" ".join(reason.split()))
        yield Text(f"Not probed: {printable(model)}: {told}", style="red")
    if (caution := unequal_images(survey)) is not None:
        yield Text(caution)
    for layer in survey.layers:
        yield Text()
        yield _counts(survey, layer, style)
    for scenario in survey.scenarios:
        if any(("logits", scenario) in r.scores for r in survey.reports.values()):
            yield from _classes(survey, scenario, style)


def _counts(survey: SurveyReport, layer: str, style: Style) -> RenderableType:
    rows = []
    for model, report in survey.reports.items():
        known = {s.scenario: s for s in report if s.layer == layer}
        cells = [
            "/".join(str(known[name].count(tier)) for tier in TIERS) if name in known else "-"
            for name in survey.scenarios
        ]
        units = {len(scores.names) for scores in known.values()}
        worst = max((scores.differentiability.max() for scores in known.values()), default=None)
        rows.append(
            (
                printable(model),
                "-" if worst is None else str(*units),
                *cells,
                "-" if worst is None else f"{worst:.3f}",
            )
        )
    tiers = "/".join(f"{tier:g}".lstrip("0") for tier in TIERS)
    columns = ("model", "units", *map(printable, survey.scenarios), "max d")
    title = f"{printable(layer)} with d >= {tiers}"
    return table(style, title[:1].upper() + title[1:], columns, rows, words=(0,))


def _classes(survey: SurveyReport, scenario: str, style: Style) -> Iterator[RenderableType]:
    found = survey.classes(scenario)
    shown = found.ends(_SHOWN)
    rows = []
    for index in shown:
        column = found.auroc[:, index]
        name = f"{found.names[index]} [{index}]"
        rows.append(
            (
                printable(name, 32),
                f"{column.mean():.3f}",
                f"{column.min():.3f}",
                f"{column.max():.3f}",
            )
        )
    title = f"Classes by mean A under {printable(scenario)}, {ranked_over(found)}"
    yield Text()
    yield table(style, title, ("class", "mean A", "lowest", "highest"), rows, words=(0,))
    hidden = len(found.names) - len(shown)
    if hidden:
        yield Text(f"The {_SHOWN} highest and lowest; {hidden:,} classes between them.")
    if (told := ranking_caution(found)) is not None:
        yield Text(told)
