"""Confidence intervals for an AUROC."""

from __future__ import annotations

import numpy as np

from pytest_watermark_guard.statistics.auroc import Floats
from pytest_watermark_guard.statistics.quantiles import student_quantile, tail_of


def logit_interval(
    auroc: Floats, standard_error: Floats, n_images: int, level: float
) -> tuple[Floats, Floats]:
    """Interval for each unit's AUROC, symmetric on the logit scale unless few images are known.

    Parameters
    ----------
    auroc, standard_error : ndarray, shape [units]
        As `paired_auroc` gives them.
    n_images : int
        Number of images; of groups, where the error is that of groups.
    level : float
        In (0, 1); else a ValueError.

    Returns
    -------
    low, high : ndarray, shape [units]
        Within [0, 1]. Where the error is unknown (one image) they are 0 and 1.

    Notes
    -----
    The quantile is Student's, of n − 1 degrees of freedom. Near 0 and 1, where the estimated error
    is too small or 0, two bounds widen the interval:

    - n images make floor(n/2) disjoint pairs, whose outcomes are independent. All are won with
      chance at most A^floor(n/2), so with ``tail`` = (1 − level)/2 no A below 1 has a lower bound
      above the exact one for A = 1, tail^(1/floor(n/2)).
    - A(1 − A)/error² independent trials would have the same error. Were k of these lost, the upper
      bound must hold a true A at which k are seldom lost: the exact bound for a rare count, by
      Wilson and Hilferty's approximation.
    """
    return interval_of_tail(auroc, standard_error, n_images, tail_of(level))


def interval_of_tail(
    auroc: Floats, standard_error: Floats, n_images: int, tail: float
) -> tuple[Floats, Floats]:
    """`logit_interval` that leaves out `tail` on each side."""
    if n_images < 2:
        return np.zeros_like(auroc), np.ones_like(auroc)
    t = student_quantile(tail, n_images - 1)
    inside = (auroc > 0) & (auroc < 1)
    area = np.where(inside, auroc, 0.5)
    error = known_error(standard_error, n_images)
    logit = np.log(area / (1 - area))
    # Overflow to infinity means an absurdly wide interval, whose bound is then rightly 0 or 1.
    with np.errstate(over="ignore"):
        reach = t * error / (area * (1 - area))
        low = 1 / (1 + np.exp(reach - logit))
        high = 1 / (1 + np.exp(-reach - logit))
    low = np.minimum(low, _rare_share(area, error, t))
    high = np.maximum(high, 1 - _rare_share(1 - area, error, t))
    low, high = np.where(inside, low, auroc), np.where(inside, high, auroc)
    separated = tail ** (1 / (n_images // 2))
    low, high = np.minimum(low, separated), np.maximum(high, 1 - separated)
    unknown = np.isnan(standard_error)
    return np.where(unknown, 0.0, low), np.where(unknown, 1.0, high)


def known_error(standard_error: Floats, n_images: int) -> Floats:
    """Return the standard error; where it is 0, what one image of another kind would make of it.

    It is 0 for a unit that never changes. One image on which it did would move A by 1/(2n).
    """
    return np.where(standard_error == 0, 0.5 / n_images, standard_error)


def _rare_share(share: Floats, error: Floats, t: float) -> Floats:
    """Return the lower bound of a share, from its count in trials that have the same error."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        trials = share * (1 - share) / error**2
        count = share * trials
        # The factor on t makes a binomial of the Poisson distribution, for counts that are many.
        root = 1 - 1 / (9 * count) - t * np.sqrt((1 - share) / count) / 3
        return np.asarray(np.nan_to_num(share * np.maximum(root, 0) ** 3))
