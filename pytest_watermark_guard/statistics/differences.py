"""Which of many AUROCs differ between two measurements, beyond chance."""

from __future__ import annotations

import math

import numpy as np

from pytest_watermark_guard.statistics.auroc import Floats

_FEW = 6.0
_LEAST_ERROR = 3.0


def guarded_error(area: Floats, error: Floats, n_images: int) -> Floats:
    """Return standard errors that may be trusted where a unit is nearly perfect.

    What tells how sure an A near 0 or 1 is are the few images that do not fit in, and where there
    is none the estimated error is 0. Within 6/n of 0 and 1 it counts as 3/n at least: a unit that
    misses a share of 13.8/n of the images misses none of n by chance one time in a million, and
    that is 4.6 times 3/n. NaN where the error is unknown.
    """
    few = np.minimum(area, 1 - area) < _FEW / n_images
    return np.where(few, np.maximum(error, _LEAST_ERROR / n_images), error)


def two_sided_p(difference: Floats, error: Floats) -> Floats:
    """Return the chance of a normal variable at least as far from 0; NaN where it is unknown."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        distance = np.abs(difference) / error
    # Units that never change have an error of 0.
    distance = np.where((difference == 0) & (error == 0), 0.0, distance)
    return np.array([math.erfc(z / math.sqrt(2)) for z in distance])


def holm(p_values: Floats) -> Floats:
    """Adjust p-values for their number (Holm 1979, "A simple sequentially rejective procedure").

    Those at or below a level then hold one that is wrong with at most that probability, however
    they depend on each other. NaN stays NaN, and does not count.
    """
    adjusted = np.full(len(p_values), np.nan)
    order = np.argsort(p_values)[: np.count_nonzero(~np.isnan(p_values))]  # NaN is last
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return adjusted
