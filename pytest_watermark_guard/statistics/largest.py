"""An interval for the largest d of many units, whose estimate profits from chance."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.auroc import (
    Floats,
    PairedAuroc,
    as_pairs,
    influences,
    paired_auroc,
)
from pytest_watermark_guard.statistics.groups import Groups
from pytest_watermark_guard.statistics.intervals import interval_of_tail
from pytest_watermark_guard.statistics.quantiles import sidak, tail_of

_SELECTION = 0.1  # share of the error that the choice of units takes
_DRAWS = 2000
_MOST_ROWS = 1000  # more images are drawn by batches, which tell correlations as well
_SCORES = 2**22  # of one side that are looked at together
_UNITS = 2048  # the same


def largest_d_interval(
    baseline: npt.ArrayLike,
    marked: npt.ArrayLike,
    level: float,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
    paired: PairedAuroc | None = None,
) -> tuple[float, float]:
    """Interval for the largest true d = max(A, 1 − A) of all units together.

    Parameters
    ----------
    baseline, marked : array_like, shape [n, units]
        Scores, where row i of both is the same image.
    level : float
        In (0, 1). Each bound is wrong with chance (1 − level)/2 at most.
    groups : array_like, shape [n], optional
        Identities of the images; equal ones are one draw, such as near duplicates.
    seed : int, default 0
        Of the bootstrap. It moves the lower bound by some hundredths of the interval.
    paired : PairedAuroc, optional
        What `paired_auroc` gave for the same scores and groups, where it is known already.

    Returns
    -------
    low, high : float
        In [0.5, 1].

    Raises
    ------
    ValueError
        If scores, `groups` or `level` are bad, or there is no unit.

    Notes
    -----
    **Upper bound**: the largest of the units' own upper bounds. The unit whose true d is largest
    has one, and exceeds it with the chance of a single interval.

    **Lower bound**: the largest lower bound at a quantile that all units exceed together with the
    stated chance (max-T). Its estimate comes from a multiplier bootstrap of the influence values,
    studentised (Chernozhukov, Chetverikov & Kato 2013), which knows how units depend; the tail of
    that normal quantile then gives Student's, and the exact bounds, of `logit_interval`. Units that
    a simultaneous interval, at a tenth of the error, shows to be below another unit do not count
    (Romano, Shaikh & Wolf 2014).
    """
    tail = tail_of(level)
    low, high = as_pairs(baseline, marked)
    if not low.shape[1]:
        raise ValueError("baseline: expected at least one unit, got none")
    images = Groups.of(groups, len(low))
    area, error = paired_auroc(low, high, groups) if paired is None else paired
    if len(area) != low.shape[1]:
        raise ValueError(f"paired: {len(area)} units, but the scores have {low.shape[1]}")

    def dependent(counted: npt.NDArray[np.bool_], rest: float) -> float:
        return _largest_quantile(low, high, images, counted, rest, seed)

    return _interval(area, error, len(images), tail, dependent)


def largest_d_bounds(
    auroc: Floats, standard_error: Floats, n_images: int, level: float
) -> tuple[float, float]:
    """`largest_d_interval` where the scores are gone: its lower bound is a little lower.

    How the units depend is unknown then, and Šidák's level takes them as independent. Arguments are
    those of `logit_interval`.
    """
    return _interval(auroc, standard_error, n_images, tail_of(level))


def _interval(
    area: Floats,
    error: Floats,
    n_images: int,
    tail: float,
    dependent: Callable[[npt.NDArray[np.bool_], float], float] | None = None,
) -> tuple[float, float]:
    # Of both sides of every unit: A, and 1 − A.
    bounds = _both_sides(*interval_of_tail(area, error, n_images, tail))
    first = sidak(_SELECTION * tail, 2 * len(area))
    wide = _both_sides(*interval_of_tail(area, error, n_images, first))
    counted = wide[1] >= max(0.5, wide[0].max())
    rest = (1 - _SELECTION) * tail
    each = sidak(rest, max(1, int(counted.sum())))
    if dependent is not None and counted.sum() > 1 and n_images > 1:
        each = max(each, NormalDist().cdf(-dependent(counted, rest)))
    narrow = _both_sides(*interval_of_tail(area, error, n_images, each))
    return float(narrow[0][counted].max(initial=0.5)), float(bounds[1].max())


def _both_sides(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Return the intervals of A and of 1 − A, each [2, units]."""
    return np.stack([low, 1 - high]), np.stack([high, 1 - low])


@lru_cache(maxsize=1)  # all scenarios of a probe have the same
def _drawn(images: int, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return the batch that each image is in, and how often each batch counts in each draw."""
    rng = np.random.default_rng(seed)
    places = np.arange(images)
    if images > _MOST_ROWS:
        places = rng.permutation(images) % _MOST_ROWS
    draws = rng.standard_normal((min(images, _MOST_ROWS), _DRAWS), dtype=np.float32)
    draws.flags.writeable = False
    return places, draws


def _largest_quantile(
    low: npt.NDArray[Any],
    high: npt.NDArray[Any],
    images: Groups,
    counted: npt.NDArray[np.bool_],
    tail: float,
    seed: int,
) -> float:
    """Return what the largest deviation, in errors, of the `counted` [2, units] seldom exceeds."""
    places, draws = _drawn(len(images), seed)
    batches = images if len(draws) == len(images) else images.merged(places)
    units = np.flatnonzero(counted.any(axis=0))
    step = max(1, min(_UNITS, _SCORES // len(low)))
    largest = np.full(_DRAWS, -np.inf)
    for begin in range(0, len(units), step):
        some = units[begin : begin + step]
        moved = influences(low[:, some], high[:, some], batches)
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        # A unit that never changes deviates by nothing.
        moved /= np.where(length == 0, 1, length)
        deviations = moved.astype(np.float32) @ draws
        above, below = (deviations[sides] for sides in counted[:, some])
        largest = np.maximum(largest, above.max(axis=0, initial=-np.inf))
        largest = np.maximum(largest, -below.min(axis=0, initial=np.inf))
    return float(np.quantile(largest, 1 - tail))
