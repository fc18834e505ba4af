"""Confidence intervals for an AUROC, and for a difference between paired shares."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.auroc import Floats, areas_of, as_pairs

_BISECTIONS = 60


def logit_interval(
    auroc: Floats, standard_error: Floats, n_images: int, level: float
) -> tuple[Floats, Floats]:
    """Interval for each unit's AUROC, symmetric on the logit scale, so never outside [0, 1].

    Where A is exactly 0 or 1 the estimated error is 0 and says nothing: there the bound is that of
    `n_images` successes out of as many trials (Clopper-Pearson), ((1 − level)/2)^(1/n). Where the
    error cannot be estimated (one image) the interval is [0, 1]. A `level` outside (0, 1) is a
    ValueError.
    """
    tail = _tail(level)
    z = NormalDist().inv_cdf(1 - tail)
    inside = (auroc > 0) & (auroc < 1)
    area = np.where(inside, auroc, 0.5)
    logit = np.log(area / (1 - area))
    # Overflow to infinity means an absurdly wide interval, whose bound is then rightly 0 or 1.
    with np.errstate(over="ignore"):
        reach = z * standard_error / (area * (1 - area))
        low = 1 / (1 + np.exp(reach - logit))
        high = 1 / (1 + np.exp(-reach - logit))
    separated = tail ** (1 / n_images)
    low = np.where(auroc == 1, separated, np.where(auroc == 0, 0.0, low))
    high = np.where(auroc == 0, 1 - separated, np.where(auroc == 1, 1.0, high))
    unknown = np.isnan(standard_error)
    return np.where(unknown, 0.0, low), np.where(unknown, 1.0, high)


def bootstrap_interval(
    baseline: npt.ArrayLike,
    marked: npt.ArrayLike,
    level: float,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """Percentile interval of each unit's AUROC over resampled images: a check of `logit_interval`.

    It shares neither the standard error nor the logit scale with `logit_interval`, and costs
    hundreds of times as much; nothing but the checks of that interval should need it. Row i of both
    arrays is the same image; n images are drawn with replacement, each with both its scores (Efron
    and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3), the same ones for every
    unit. Where A is exactly 0 or 1 every resample says the same and the interval is that point. A
    ValueError tells of bad scores, `level` and `resamples`.
    """
    tail = _tail(level)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples!r}")
    low, high = as_pairs(baseline, marked)
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(low), size=len(low)) for _ in range(resamples))
    areas = [areas_of(low[images].T, high[images].T) for images in drawn]
    bounds: Floats = np.quantile(areas, [tail, 1 - tail], axis=0)
    return bounds[0], bounds[1]


def paired_difference_interval(
    values: npt.ArrayLike, level: float, groups: npt.ArrayLike | None = None
) -> tuple[float, float]:
    """Interval for the mean of differences that are each −1, 0 or 1: one share minus another.

    Tango's score interval (1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design"). It needs no number of differences to be large, and
    is no point where none differs: there it is ± z² / (n + z²). `groups` names each value's group,
    of values that depend on each other: they then count as so many fewer independent ones as the
    error of the mean is larger (the design effect, Rao and Scott 1992). Other values, none at all,
    or another number of groups than of values is a ValueError, and so is a bad `level`.
    """
    z = NormalDist().inv_cdf(1 - _tail(level))
    differences = np.asarray(values, dtype=np.float64)
    if differences.ndim != 1 or not len(differences):
        raise ValueError(f"values: a list of at least one, got shape {differences.shape}")
    if not np.isin(differences, (-1, 0, 1)).all():
        raise ValueError("values: each must be -1, 0 or 1")
    effect = 1.0 if groups is None else _design_effect(differences, np.asarray(groups))
    n = len(differences) / effect
    won = int((differences == 1).sum()) / effect
    lost = int((differences == -1).sum()) / effect
    return -_tango_bound(lost, won, n, z), _tango_bound(won, lost, n, z)


def _tango_bound(won: float, lost: float, n: float, z: float) -> float:
    """Return the largest difference that the score test does not reject, by bisection."""

    def rejects(difference: float) -> bool:
        # The share of losses, at its most likely for this difference, is a quadratic's root.
        b = (2 * n - won + lost) * difference - won - lost
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        return n * difference - (won - lost) > z * math.sqrt(max(0.0, variance))

    low, high = (won - lost) / n, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if rejects(middle) else (middle, high)
    return high


def _design_effect(values: Floats, groups: npt.NDArray[np.generic]) -> float:
    """Return how many times its independent value the variance of the mean is, at least 1."""
    if groups.shape != values.shape:
        raise ValueError(f"groups: one for each of {len(values)} values, got shape {groups.shape}")
    _, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group)
    residuals = values - values.mean()
    squares = float(np.square(residuals).sum())
    if not squares:  # all alike: how far groups agree within themselves cannot be told
        return len(values) / len(sizes)
    sums = np.bincount(group, weights=residuals)
    return max(1.0, float(np.square(sums).sum()) / squares)


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    return (1 - level) / 2
