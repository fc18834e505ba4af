"""Whether a report's images can tell on which side of a threshold the largest d is."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from pytest_watermark_guard.reports.probe import ProbeReport

Answer = Literal["reaches", "below", "unclear"]
Unit = tuple[str, str, int]
"""Layer, scenario and index."""


class Conclusion(NamedTuple):
    """What the images tell of the largest d."""

    answer: Answer
    images_needed: int | None = None  # about how many would tell; None: these do


def conclude(report: ProbeReport, threshold: float, exempt: frozenset[Unit]) -> Conclusion:
    """Say whether the largest d of a report truly reaches a threshold, or stays below it.

    Units that are `exempt` do not count. A verdict that ended the probe early is taken as it is:
    it stands on bets with a stated risk, see `statistics.sequential`.
    """
    early = report.early_stop
    if early is not None and early.verdict is not None and early.threshold == threshold:
        return Conclusion("reaches" if early.verdict == "sensitive" else "below")
    areas, errors = [], []
    for (layer, scenario), scores in report.scores.items():
        counted = np.ones(len(scores.auroc), dtype=bool)
        counted[[i for one, name, i in exempt if (one, name) == (layer, scenario)]] = False
        areas.append(scores.auroc[counted])
        errors.append(scores.standard_error[counted])
    from pytest_watermark_guard.statistics.decision import decide

    return Conclusion(
        *decide(np.concatenate(areas), np.concatenate(errors), report.n_images, threshold)
    )
