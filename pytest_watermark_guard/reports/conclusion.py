"""Whether a report's images can tell on which side of a threshold the largest d is."""

from __future__ import annotations

import numpy as np

from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.statistics.decisions import ThresholdDecision, decide

Unit = tuple[str, str, int]
"""Layer, scenario and index."""
LEVEL = 0.95  # of decisions, and of the intervals that are shown beside them
_VARIED = 0.8  # share of different pictures among the images


def conclude(report: ProbeReport, threshold: float, exempt: frozenset[Unit]) -> ThresholdDecision:
    """Say whether the largest d of a report truly reaches a threshold, or stays below it.

    Units that are `exempt` do not count. A verdict that ended the probe early is taken as it is,
    since it stands on bets with a stated risk, see `statistics.sequential`: but for bets on a few
    pictures over and over, which are about these pictures and no others.
    """
    pictures = min((scores.n_groups for scores in report), default=0)
    early = report.early_stop
    if early is not None and early.threshold == threshold:
        varied = pictures >= _VARIED * report.n_images
        if early.verdict == "clean" and varied:
            return ThresholdDecision("below")
        if early.verdict == "sensitive" and varied and threshold**pictures <= 1 - LEVEL:
            return ThresholdDecision("reaches")
    areas, errors = [], []
    for (layer, scenario), scores in report.scores.items():
        counted = np.ones(len(scores.auroc), dtype=bool)
        counted[[i for one, name, i in exempt if (one, name) == (layer, scenario)]] = False
        areas.append(scores.auroc[counted])
        errors.append(scores.standard_error[counted])
    area, error = np.concatenate(areas), np.concatenate(errors)
    if not len(area):
        return ThresholdDecision("below")  # nothing counts
    return decide(area, error, pictures, threshold, LEVEL)
