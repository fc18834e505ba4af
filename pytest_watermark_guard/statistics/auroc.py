"""Exact AUROC with ties, and its standard error when the scores come in pairs."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.groups import Groups

Floats = npt.NDArray[np.float64]

# Scores of one group that a thread works on at once, some 10 MB with what is made of them: in less,
# threads would wait for the interpreter; more would fall out of the processor's cache.
BLOCK = 2**17
MOST_THREADS = 8


class PairedAuroc(NamedTuple):
    """AUROC of each unit with its standard error, both [units]."""

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
    return _by_blocks(areas_of, low, high)


def paired_auroc(
    baseline: npt.ArrayLike, marked: npt.ArrayLike, groups: npt.ArrayLike | None = None
) -> PairedAuroc:
    """AUROC and its standard error where row i of both arrays is the same image.

    The standard error is the structural-components (DeLong) estimate with the image as the cluster,
    so that the correlation between an image's two scores is accounted for (Obuchowski 1997,
    "Nonparametric analysis of clustered ROC curve data", section 3). With `groups`, one identity
    for each image, images of equal identity are one cluster, such as near duplicates of a photo. It
    is NaN where there is one cluster only. Scores and errors are as for `auroc`; another number of
    rows or of groups is a ValueError too.
    """
    low, high = as_pairs(baseline, marked)
    clusters = Groups.of(groups, len(low))
    return PairedAuroc(*_by_blocks(partial(_areas_and_errors, clusters), low, high).T.copy())


def influences(low: npt.NDArray[Any], high: npt.NDArray[Any], groups: Groups) -> Floats:
    """Return how each group moves each unit's A, [units, groups]: sums of zero."""
    return _by_blocks(lambda *block: groups.sums(_influences(*block)[1]), low, high)


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
    rows = max(1, BLOCK // max(1, array.shape[1]))
    blocks = (array[first : first + rows] for first in range(0, len(array), rows))
    if not all(np.isfinite(block).all() for block in blocks):
        raise ValueError(f"{name}: scores must be finite, found NaN or infinity")
    return array


def _as_scores(baseline: npt.ArrayLike, marked: npt.ArrayLike) -> tuple[Any, Any]:
    low, high = as_scores("baseline", baseline), as_scores("marked", marked)
    if low.shape[1] != high.shape[1]:
        raise ValueError(f"baseline and marked have {low.shape[1]} and {high.shape[1]} units")
    return low, high


def _by_blocks(
    statistic: Callable[[Any, Any], Floats], low: npt.NDArray[Any], high: npt.NDArray[Any]
) -> Floats:
    """Call `statistic` with blocks [units, n], of one type, and put the results in a row."""
    # One type for both: a comparison must not depend on which side was rounded.
    common = np.result_type(low, high)
    width = max(1, BLOCK // max(len(low), len(high)))

    def block(first: int) -> Floats:
        units = slice(first, first + width)
        rows = (np.ascontiguousarray(group[:, units].T, dtype=common) for group in (low, high))
        return statistic(*rows)

    starts = range(0, max(1, low.shape[1]), width)
    if len(starts) == 1:
        return block(0)  # to start a thread would take as long
    with ThreadPoolExecutor(min(MOST_THREADS, _cores(), len(starts))) as pool:
        return np.concatenate([*pool.map(block, starts)])


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def areas_of(baseline: npt.NDArray[Any], marked: npt.NDArray[Any]) -> Floats:
    """Return A of each unit, from scores [units, n] of both groups."""
    # Without an order of all scores: half the time, where nothing but their number is wanted.
    wins = [
        int(np.searchsorted(low, high, side).sum())
        for low, high in zip(np.sort(baseline), np.sort(marked), strict=True)
        for side in ("left", "right")
    ]
    pairs = baseline.shape[1] * marked.shape[1]
    areas: Floats = np.array(wins, dtype=np.float64).reshape(-1, 2).sum(axis=1) / (2 * pairs)
    return areas


def _areas_and_errors(
    groups: Groups, baseline: npt.NDArray[Any], marked: npt.NDArray[Any]
) -> Floats:
    areas, moved = _influences(baseline, marked)
    if len(groups) == 1:
        return np.stack([areas, np.full(len(areas), np.nan)], axis=1)
    moved = groups.sums(moved)
    squares = np.einsum("ui,ui->u", moved, moved)
    return np.stack([areas, np.sqrt(squares * len(groups) / (len(groups) - 1))], axis=1)


def _influences(baseline: npt.NDArray[Any], marked: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Return A of each unit and how much each image moves it, [units, n]."""
    n = baseline.shape[1]
    wins = _doubled_wins(baseline, marked)
    areas: Floats = wins[:, n:].sum(axis=1, dtype=np.int64) / (2 * n * n)
    # Each image moves A by its marked score's wins and its baseline score's losses.
    moved = (wins[:, n:] + wins[:, :n]).astype(np.float64)
    moved -= moved.mean(axis=1, keepdims=True)
    moved /= 2 * n * n
    return areas, moved


def _doubled_wins(baseline: npt.NDArray[Any], marked: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Count for each score how many of the other group it beats, ties counting one half.

    Returns [units, n_baseline + n_marked]: twice the wins of marked scores over the baseline's, and
    less than zero, for the baseline's scores: twice their wins over marked ones.
    """
    n = baseline.shape[1]
    both = np.concatenate([baseline, marked], axis=1)
    order, ordered = _in_order(both)
    of_baseline = (order < n).view(np.int8)
    # Up to each place in the order, with it: how many of the baseline's, and how many at all.
    lower = np.cumsum(of_baseline, axis=1, dtype=np.int32)
    places = np.arange(1, both.shape[1] + 1, dtype=np.int32)
    differs = ordered[:, 1:] != ordered[:, :-1]
    if differs.all():
        signed = lower - places * of_baseline
        signed *= 2
    else:
        begins = np.pad(differs, ((0, 0), (1, 0)), constant_values=True)
        first = np.flatnonzero(begins)  # of equal scores, in all rows
        lengths = np.diff(first, append=begins.size)
        last = first + lengths - 1
        wins = lower.ravel()[first] - of_baseline.ravel()[first] + lower.ravel()[last]
        place = np.broadcast_to(places, both.shape).ravel()
        through = place[first] - 1 + place[last]  # as `wins`, of both groups
        through = np.repeat(through, lengths)
        through *= of_baseline.ravel()
        signed = np.repeat(wins, lengths)
        signed -= through
    result = np.empty_like(both, dtype=np.int32)
    order += np.arange(0, both.size, both.shape[1])[:, None]
    result.ravel()[order.ravel()] = signed.ravel()
    return result


def _in_order(scores: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """Return each row's order, and what tells the scores apart in that order."""
    if scores.dtype != np.float32:
        order = np.argsort(scores, axis=1)
        return order, np.take_along_axis(scores, order, axis=1)
    # As integers of the same order with the place behind them: numbers are sorted faster than
    # places by numbers.
    bits = (scores + np.float32(0)).view(np.int32)  # there are two zeros
    bits ^= (bits >> 31) & np.int32(2**31 - 1)
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(scores.shape[1])
    keys.sort(axis=1)
    return keys & (2**32 - 1), keys >> 32
