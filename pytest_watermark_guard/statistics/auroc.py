"""Exact AUROC with ties, and its standard error when the scores come in pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


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
    counts = [_doubled_wins(np.sort(b), m).sum() for b, m in zip(low.T, high.T, strict=True)]
    return np.array(counts, dtype=np.float64) / (2 * len(low) * len(high))


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
    low, high = _as_scores(baseline, marked)
    if len(low) != len(high):
        raise ValueError(f"paired scores need as many rows, got {len(low)} and {len(high)}")
    n = len(low)
    area = np.empty(low.shape[1])
    error = np.full(low.shape[1], np.nan)
    for unit, (b, m) in enumerate(zip(low.T, high.T, strict=True)):
        wins = _doubled_wins(np.sort(b), m)
        losses = _doubled_wins(np.sort(m), b)
        area[unit] = wins.sum() / (2 * n * n)
        if n > 1:
            # Each image moves A by its marked score's wins and its baseline score's losses.
            influence = (wins - losses) / (2 * n)
            error[unit] = influence.std(ddof=1) / np.sqrt(n)
    return PairedAuroc(area, error)


def _as_scores(baseline: npt.ArrayLike, marked: npt.ArrayLike) -> tuple[Any, Any]:
    groups = []
    for name, scores in (("baseline", baseline), ("marked", marked)):
        array = np.asarray(scores)
        array = array[:, None] if array.ndim == 1 else array
        if array.ndim != 2 or len(array) == 0:
            raise ValueError(f"{name}: expected shape [n, units] with n >= 1, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: scores must be finite, found NaN or infinity")
        groups.append(array)
    if groups[0].shape[1] != groups[1].shape[1]:
        raise ValueError(
            f"baseline and marked have {groups[0].shape[1]} and {groups[1].shape[1]} units"
        )
    # One type for both: a comparison must not depend on which side was rounded.
    common = np.result_type(*groups)
    return groups[0].astype(common), groups[1].astype(common)


def _doubled_wins(ordered: npt.NDArray[Any], scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each score, twice how many of the sorted others it beats, ties counting one."""
    below = np.searchsorted(ordered, scores, side="left")
    not_above = np.searchsorted(ordered, scores, side="right")
    return below + not_above
