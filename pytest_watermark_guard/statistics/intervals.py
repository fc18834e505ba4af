"""Confidence intervals for an AUROC."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.auroc import Floats, areas_of, as_pairs


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


def _tail(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    return (1 - level) / 2
