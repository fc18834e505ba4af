"""Exact AUROC with ties, and its standard error when the scores come in pairs."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Result = TypeVar("Result")

# Scores of one group that are copied at once: 4 MB of float32, which stays in the cache.
CHUNK = 2**20
# Below this many images threads wait for each other longer than they sort.
MANY_IMAGES = 4096
MOST_THREADS = 8


class PairedAuroc(NamedTuple):
    """AUROC of each unit with its standard error.

    Attributes
    ----------
    auroc : ndarray of float64, shape [units]
    standard_error : ndarray of float64, shape [units]
    """

    auroc: Floats
    standard_error: Floats


def auroc(baseline: npt.ArrayLike, marked: npt.ArrayLike) -> Floats:
    """Area under the ROC curve of every unit: the chance that a marked image scores higher.

    Parameters
    ----------
    baseline : array_like, shape [n_baseline, units] or [n_baseline]
    marked : array_like, shape [n_marked, units] or [n_marked]

    Returns
    -------
    ndarray of float64, shape [units]
        Exact: pairs are counted in integers, ties count one half. A constant unit has 0.5.

    Raises
    ------
    ValueError
        If a score is NaN or infinite, a group is empty, or the numbers of units differ.

    Examples
    --------
    >>> auroc([0.1, 0.2, 0.3], [0.3, 0.4, 0.5])
    array([0.94444444])
    """
    low, high = _as_scores(baseline, marked)
    wins = _for_each_unit(_total_doubled_wins, low, high)
    return np.array(wins, dtype=np.float64) / (2 * len(low) * len(high))


def paired_auroc(baseline: npt.ArrayLike, marked: npt.ArrayLike) -> PairedAuroc:
    """AUROC and its standard error where row i of both arrays is the same image.

    Parameters
    ----------
    baseline, marked : array_like, shape [n, units] or [n]
        Scores without and with the mark.

    Returns
    -------
    PairedAuroc
        The standard error is the structural-components (DeLong) estimate with the image as the
        cluster, so that the correlation between an image's two scores is accounted for
        (Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data", section 3).
        NaN where n = 1.

    Raises
    ------
    ValueError
        As `auroc`, and if the numbers of rows differ.
    """
    low, high = as_pairs(baseline, marked)
    found = _for_each_unit(_area_and_error, low, high)
    return PairedAuroc(*np.array(found, dtype=np.float64).reshape(-1, 2).T.copy())


def as_pairs(baseline: npt.ArrayLike, marked: npt.ArrayLike) -> tuple[Any, Any]:
    """Both groups as arrays [n, units], not copied where they are arrays; errors as documented."""
    low, high = _as_scores(baseline, marked)
    if len(low) != len(high):
        raise ValueError(f"paired scores need as many rows, got {len(low)} and {len(high)}")
    return low, high


def as_scores(name: str, scores: npt.ArrayLike) -> npt.NDArray[Any]:
    """`scores` as an array [n, units] of finite numbers; `name` is for the error's text."""
    array = np.asarray(scores)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) == 0:
        raise ValueError(f"{name}: expected shape [n, units] with n >= 1, got {array.shape}")
    # By blocks of rows: the answers for a whole array would need a quarter of its memory.
    rows = max(1, CHUNK // max(1, array.shape[1]))
    blocks = (array[first : first + rows] for first in range(0, len(array), rows))
    if not all(np.isfinite(block).all() for block in blocks):
        raise ValueError(f"{name}: scores must be finite, found NaN or infinity")
    return array


def _as_scores(baseline: npt.ArrayLike, marked: npt.ArrayLike) -> tuple[Any, Any]:
    low, high = as_scores("baseline", baseline), as_scores("marked", marked)
    if low.shape[1] != high.shape[1]:
        raise ValueError(f"baseline and marked have {low.shape[1]} and {high.shape[1]} units")
    return low, high


def _for_each_unit(
    statistic: Callable[[Any, Any], Result], low: npt.NDArray[Any], high: npt.NDArray[Any]
) -> list[Result]:
    """Call `statistic` with every unit's two columns, contiguous and of one type."""
    # One type for both: a comparison must not depend on which side was rounded.
    common = np.result_type(low, high)
    longest = max(len(low), len(high))
    width = max(1, CHUNK // longest)

    def chunk(first: int) -> list[Result]:
        block = slice(first, first + width)
        rows = (np.ascontiguousarray(group[:, block].T, dtype=common) for group in (low, high))
        return [statistic(b, m) for b, m in zip(*rows, strict=True)]

    starts = range(0, low.shape[1], width)
    if longest < MANY_IMAGES:
        chunks = map(chunk, starts)
        return [result for results in chunks for result in results]
    with ThreadPoolExecutor(min(MOST_THREADS, _cores())) as pool:
        return [result for results in pool.map(chunk, starts) for result in results]


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _total_doubled_wins(baseline: npt.NDArray[Any], marked: npt.NDArray[Any]) -> int:
    return int(_doubled_wins(np.sort(baseline), np.sort(marked)).sum())


def _area_and_error(baseline: npt.NDArray[Any], marked: npt.NDArray[Any]) -> tuple[float, float]:
    n = len(baseline)
    by_baseline, by_marked = np.argsort(baseline), np.argsort(marked)
    ordered_baseline, ordered_marked = baseline[by_baseline], marked[by_marked]
    wins = _doubled_wins(ordered_baseline, ordered_marked)
    losses = _doubled_wins(ordered_marked, ordered_baseline)
    area = int(wins.sum()) / (2 * n * n)
    if n == 1:
        return area, np.nan
    # Each image moves A by its marked score's wins and its baseline score's losses.
    influence = np.empty(n)
    influence[by_marked] = wins
    influence[by_baseline] -= losses
    influence -= influence.mean()
    return area, float(np.sqrt(influence @ influence / (n - 1) / n)) / (2 * n)


def _doubled_wins(
    ordered: npt.NDArray[Any], scores: npt.NDArray[Any]
) -> npt.NDArray[np.signedinteger[Any]]:
    """For each score, twice how many of the sorted others it beats, ties counting one.

    Much the quickest where `scores` are sorted too: neighbours then search the same memory.
    """
    below = np.searchsorted(ordered, scores, side="left")
    not_above = np.searchsorted(ordered, scores, side="right")
    return below + not_above
