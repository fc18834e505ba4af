"""What a survey's tables and figures must not be read without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_watermark_guard.reporting.text import count, printable

if TYPE_CHECKING:
    from pytest_watermark_guard.surveying import ClassRanking, SurveyReport


def unequal_images(survey: SurveyReport) -> str | None:
    """Say that models were probed on different numbers of images, if they were."""
    sizes = {report.n_images for report in survey.reports.values()}
    if len(sizes) < 2:
        return None
    return (
        f"Between {min(sizes):,} and {max(sizes):,} images each: a gate ends when its verdict is "
        "certain. Tables of all images: --wm-early-stop=0, or survey()."
    )


def ranked_over(ranking: ClassRanking) -> str:
    """Say over how many models classes are ranked."""
    return f"over {count(len(ranking.models), 'model')}"


def ranking_caution(ranking: ClassRanking) -> str | None:
    """Say which models a ranking leaves out, and what it assumes of the others."""
    told = []
    if ranking.left_out:
        told.append(f"Without models of other classes: {printable(', '.join(ranking.left_out))}.")
    if len(ranking.models) > 1 and ranking.names == tuple(map(str, range(len(ranking.names)))):
        told.append("The classes have numbers and no names, and are taken to be the same.")
    return " ".join(told) or None
