"""Intervals for shares of images, and for the difference of two shares of the same images."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.groups import Groups
from pytest_watermark_guard.statistics.quantiles import student_quantile, tail_of

_HALVINGS = 60  # of an interval of length 2: as exact as floats are


def share_interval(
    events: npt.ArrayLike, level: float, groups: npt.ArrayLike | None = None
) -> tuple[float, float]:
    """Interval for the share of images on which something happens, such as a changed prediction.

    Parameters
    ----------
    events : array_like of bool, or of 0 and 1, shape [n]
    level : float
        In (0, 1).
    groups : array_like, shape [n], optional
        Identities of the images; equal ones are one draw, such as near duplicates.

    Returns
    -------
    low, high : float
        Wilson's (1927) score interval. With groups it is that of as many independent images as tell
        as much, at Student's quantile; (0, 1) for a single group.

    Raises
    ------
    ValueError
        If `events`, `level` or `groups` are bad.

    Examples
    --------
    >>> low, high = share_interval([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], 0.95)
    >>> round(low, 3), round(high, 3)
    (0.108, 0.603)
    """
    values = _checked("events", events, (0, 1))
    trials, z = _effective(values, level, groups)
    if math.isinf(z):
        return 0.0, 1.0
    share = float(values.mean())
    centre = share + z**2 / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    scale = 1 + z**2 / trials
    # Rounding must not leave [0, 1], nor the share itself outside.
    low = 0.0 if share == 0 else max(0.0, (centre - reach) / scale)
    high = 1.0 if share == 1 else min(1.0, (centre + reach) / scale)
    return low, high


def paired_difference_interval(
    differences: npt.ArrayLike, level: float, groups: npt.ArrayLike | None = None
) -> tuple[float, float]:
    """Interval for the difference of two shares of the same images.

    Parameters
    ----------
    differences : array_like, shape [n]
        For each image 1 if only the first happened, −1 if only the second, 0 if both or neither:
        a flip under the mark and under the control, or a right answer before and after.
    level, groups
        As for `share_interval`.

    Returns
    -------
    low, high : float
        Tango's (1998) score interval, "Equivalence test and confidence interval for the difference
        in proportions for the paired-sample design". With groups as `share_interval` does it;
        (−1, 1) for a single group.

    Raises
    ------
    ValueError
        If `differences`, `level` or `groups` are bad.

    Examples
    --------
    >>> low, high = paired_difference_interval([1] * 12 + [-1] * 2 + [0] * 36, 0.95)
    >>> round(low, 3), round(high, 3)
    (0.059, 0.344)
    """
    values = _checked("differences", differences, (-1, 0, 1))
    trials, z = _effective(values, level, groups)
    if math.isinf(z):
        return -1.0, 1.0
    scale = trials / len(values)
    first, second = scale * float((values == 1).sum()), scale * float((values == -1).sum())
    # From below the lower bound is the upper one of the swapped shares.
    low = -_tango_upper(second, first, trials, z)
    return low, _tango_upper(first, second, trials, z)


def _tango_upper(first: float, second: float, trials: float, z: float) -> float:
    """Return the largest difference that a score test does not refute, by bisection."""
    estimate = (first - second) / trials
    low, high = estimate, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The share of `second` that is most likely under that difference: a root of Tango's (4).
        b = (2 * trials - first + second) * middle - first - second
        c = -second * middle * (1 - middle)
        least = (math.sqrt(max(0.0, b**2 - 8 * trials * c)) - b) / (4 * trials)
        error = math.sqrt(max(0.0, (2 * least + middle * (1 - middle)) / trials))
        low, high = (middle, high) if middle - estimate <= z * error else (low, middle)
    return low


def _checked(name: str, values: npt.ArrayLike, allowed: tuple[int, ...]) -> npt.NDArray[np.float64]:
    array: npt.NDArray[Any] = np.asarray(values)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name}: expected one value for each image, got shape {array.shape}")
    if not np.isin(array, allowed).all():
        raise ValueError(f"{name}: each must be one of {', '.join(map(str, allowed))}")
    return array.astype(np.float64)


def _effective(
    values: npt.NDArray[np.float64], level: float, groups: npt.ArrayLike | None
) -> tuple[float, float]:
    """Return the number of independent images that tell as much, and the quantile to use."""
    tail, n = tail_of(level), len(values)
    if groups is None:
        return n, -NormalDist().inv_cdf(tail)
    images = Groups.of(groups, n)
    count = len(images)
    if count == 1:
        return 1, math.inf
    # The design effect: 1 for images that have nothing to do with each other, at most what it is
    # where all images of a group are alike. Few groups that differ from the others hardly tell it:
    # one more counts as alike.
    most = float((images.sizes.astype(np.float64) ** 2).sum() / n)
    rest = values - values.mean()
    alone = float((rest**2).sum() / (n - 1))
    together = float((images.sums(rest) ** 2).sum() * count / (count - 1) / n)
    measured = most if alone == 0 else min(most, max(1.0, together / alone))
    kinds, numbers = np.unique(values, return_counts=True)
    different = images.sums((values != kinds[numbers.argmax()]).astype(np.intp)) > 0
    effect = (measured * different.sum() + most) / (different.sum() + 1)
    return float(n / effect), student_quantile(tail, count - 1)
