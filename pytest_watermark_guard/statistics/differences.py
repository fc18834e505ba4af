"""Which of many AUROCs differ between two measurements, beyond chance."""

from __future__ import annotations

import math

import numpy as np

from pytest_watermark_guard.statistics.auroc import Floats

_LEAST_ERROR = 3.0


def difference_error(error: Floats, n_images: int, other: Floats, other_n_images: int) -> Floats:
    """Return the standard error of the difference of AUROCs whose images are independent.

    Where both are of the same images, the two go up and down together and the true error is
    smaller. Neither counts as less than 3/n: where a unit separates n images perfectly, its
    estimated error is 0, and one that misses a share of 13.8/n of them does so by chance one time
    in a million, which 3/n makes 4.6 standard errors. NaN where an error is unknown.
    """
    return np.hypot(
        np.maximum(error, _LEAST_ERROR / n_images),
        np.maximum(other, _LEAST_ERROR / other_n_images),
    )


def two_sided_p(difference: Floats, error: Floats) -> Floats:
    """Return the chance of a normal variable at least as far from 0; NaN where it is unknown."""
    return np.array([math.erfc(abs(z) / math.sqrt(2)) for z in difference / error])


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
