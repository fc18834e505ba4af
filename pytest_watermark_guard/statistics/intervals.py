"""Confidence intervals for an AUROC."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.auroc import Floats, as_pairs

# Resampled images that are counted at once, so that a unit's temporaries stay in the cache.
CHUNK = 2**17


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
    n, units = low.shape
    order = np.argsort(low, axis=0)
    rng = np.random.default_rng(seed)
    chances = np.full(n, 1 / n)
    size = max(1, CHUNK // n)
    areas = np.empty((resamples, units))
    for first in range(0, resamples, size):
        # Times each image is drawn, [n, resamples of this chunk].
        drawn = rng.multinomial(n, chances, size=min(size, resamples - first)).T.copy()
        for unit in range(units):
            by_score = order[:, unit]
            wins = _doubled_wins_of_drawn(low[by_score, unit], high[:, unit], drawn, by_score)
            areas[first : first + size, unit] = wins / (2 * n * n)
    bounds: Floats = np.quantile(areas, [tail, 1 - tail], axis=0)
    return bounds[0], bounds[1]


def _doubled_wins_of_drawn(
    ordered_baseline: npt.NDArray[np.generic],
    marked: npt.NDArray[np.generic],
    drawn: npt.NDArray[np.int64],
    by_score: npt.NDArray[np.intp],
) -> npt.NDArray[np.int64]:
    """Twice the pairs that the marked scores win in each resample, ties counting one."""
    below = np.zeros((len(drawn) + 1, drawn.shape[1]), dtype=np.int64)
    np.cumsum(drawn[by_score], axis=0, out=below[1:])
    wins = below[np.searchsorted(ordered_baseline, marked, side="left")]
    wins += below[np.searchsorted(ordered_baseline, marked, side="right")]
    total: npt.NDArray[np.int64] = (wins * drawn).sum(axis=0)
    return total


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    return (1 - level) / 2
