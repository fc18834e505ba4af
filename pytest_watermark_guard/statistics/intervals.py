"""Confidence intervals for an AUROC."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from pytest_watermark_guard.statistics.auroc import Floats


def logit_interval(
    auroc: Floats, standard_error: Floats, n_images: int, level: float
) -> tuple[Floats, Floats]:
    """Interval for each unit's AUROC, symmetric on the logit scale, so never outside [0, 1].

    Parameters
    ----------
    auroc, standard_error : ndarray of float64, shape [units]
    n_images : int
        Number of image pairs.
    level : float
        Coverage aimed at, in (0, 1).

    Returns
    -------
    low, high : ndarray of float64, shape [units]
        Where A is exactly 0 or 1 the estimated error is 0 and says nothing: there the bound is
        that of `n_images` successes out of as many trials (Clopper-Pearson), ((1 − level)/2)^(1/n).
        Where the error cannot be estimated (one image) the interval is [0, 1].

    Raises
    ------
    ValueError
        If `level` is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    tail = (1 - level) / 2
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
