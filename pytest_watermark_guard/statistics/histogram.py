"""AUROC from binned scores: memory that does not grow with the images, and counts that add up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.auroc import Floats, as_scores

Counts = npt.NDArray[np.int64]


class BinnedAuroc(NamedTuple):
    """AUROC of each unit from two histograms, and how far off it can be.

    Attributes
    ----------
    auroc : ndarray of float64, shape [units]
        Pairs within one bin count one half.
    bound : ndarray of float64, shape [units]
        The distance to the exact AUROC is never larger: half the share of the pairs that fall into
        one bin, except for bins of a single value, where one half is exact.
    standard_error : ndarray of float64, shape [units]
        Never less than that of `paired_auroc`, whatever image each score came from, so up to √2
        too wide where an image's two scores are independent and wider where they agree.
        NaN where a group has one image.
    """

    auroc: Floats
    bound: Floats
    standard_error: Floats


class ScoreHistogram:
    """Counts of each unit's scores in fixed bins.

    Histograms of parts of a data set, filled in any order or in other processes, add up to the
    histogram of all of it, as long as their edges are the same.

    Parameters
    ----------
    edges : array_like of float, shape [units, bins - 1]
        Inner edges of each unit, rising. A score on an edge is in the bin above it; the outer bins
        have no end. An edge and the next float64 after it make a bin of a single value.

    Attributes
    ----------
    edges : ndarray of float64, shape [units, bins - 1]
    counts : ndarray of int64, shape [units, bins]
    n_images : int

    Raises
    ------
    ValueError
        If the edges have another shape, are NaN, or fall.
    """

    def __init__(self, edges: npt.ArrayLike) -> None:
        self.edges = np.array(edges, dtype=np.float64)
        if self.edges.ndim != 2:
            raise ValueError(f"edges: expected shape [units, bins - 1], got {self.edges.shape}")
        if np.isnan(self.edges).any() or (self.edges[:, 1:] < self.edges[:, :-1]).any():
            raise ValueError("edges must be rising numbers")
        self.counts: Counts = np.zeros((len(self.edges), self.edges.shape[1] + 1), dtype=np.int64)
        self.n_images = 0

    @classmethod
    def from_sample(cls, scores: npt.ArrayLike, bins: int = 1024) -> ScoreHistogram:
        """Return an empty histogram whose bins would hold equal shares of `scores`.

        Parameters
        ----------
        scores : array_like, shape [n, units] or [n]
            The first scores, of both groups if they are far apart, and more of them than bins, or
            bins stay empty. They choose the edges and are not counted. A value so frequent that it
            would fill a bin gets one for itself.
        bins : int
            At least 1.

        Raises
        ------
        ValueError
            If a score is NaN or infinite, there is none, or `bins` is less than 1.
        """
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins!r}")
        sample = np.sort(as_scores("scores", scores).astype(np.float64), axis=0)
        edges = sample[np.arange(1, bins) * len(sample) // bins].T
        # Two edges at one value would waste a bin: the second just above it closes the value in.
        repeated = edges[:, 1:] == edges[:, :-1]
        edges[:, 1:][repeated] = np.nextafter(edges[:, 1:][repeated], np.inf)
        return cls(edges)

    def add(self, scores: npt.ArrayLike) -> None:
        """Count scores, which are compared as float64.

        Parameters
        ----------
        scores : array_like, shape [n, units] or [n]

        Raises
        ------
        ValueError
            If a score is NaN or infinite, there is none, or the number of units differs. Nothing
            is counted then.
        """
        new = as_scores("scores", scores)
        units, bins = self.counts.shape
        if new.shape[1] != units:
            raise ValueError(f"the histogram has {units} units, the scores have {new.shape[1]}")
        for counts, edges, column in zip(self.counts, self.edges, new.T, strict=True):
            where = np.searchsorted(edges, column.astype(np.float64), side="right")
            counts += np.bincount(where, minlength=bins)
        self.n_images += len(new)

    def merge(self, other: ScoreHistogram) -> None:
        """Add the counts of `other`; ValueError if its edges are not the same."""
        _check_edges(self, other)
        self.counts += other.counts
        self.n_images += other.n_images


def histogram_auroc(baseline: ScoreHistogram, marked: ScoreHistogram) -> BinnedAuroc:
    """AUROC of every unit from the histograms of its two groups.

    Parameters
    ----------
    baseline, marked : ScoreHistogram
        With the same edges.

    Returns
    -------
    BinnedAuroc
        Which images a score came from is lost, and with it the covariance that `paired_auroc`
        needs; the standard error is sd(X) + sd(Y) >= sd(X - Y) of the structural components X and
        Y (DeLong et al. 1988), both at their largest within the bins.

    Raises
    ------
    ValueError
        If the edges differ or a histogram is empty.
    """
    _check_edges(baseline, marked)
    n, m = baseline.n_images, marked.n_images
    if min(n, m) == 0:
        raise ValueError(f"both histograms need scores, got {n} and {m}")
    low, high = baseline.counts, marked.counts
    wins, losses = _doubled_below(low), _doubled_below(high)
    single = _holds_single_value(baseline.edges)
    unsure_low, unsure_high = np.where(single, 0, low), np.where(single, 0, high)
    pairs = 2 * n * m
    return BinnedAuroc(
        (high * wins).sum(axis=1) / pairs,
        (high * unsure_low).sum(axis=1) / pairs,
        _largest_error(wins / (2 * n), unsure_low / (2 * n), high, m)
        + _largest_error(losses / (2 * m), unsure_high / (2 * m), low, n),
    )


def _check_edges(one: ScoreHistogram, other: ScoreHistogram) -> None:
    if not np.array_equal(one.edges, other.edges):
        raise ValueError("the histograms have different edges")


def _doubled_below(counts: Counts) -> Counts:
    """For a score in each bin, twice how many of the counted it beats, its own bin as ties."""
    not_above = np.cumsum(counts, axis=1)
    return 2 * not_above - counts


def _holds_single_value(edges: Floats) -> npt.NDArray[np.bool_]:
    single = np.zeros((len(edges), edges.shape[1] + 1), dtype=bool)
    single[:, 1:-1] = edges[:, 1:] <= np.nextafter(edges[:, :-1], np.inf)
    return single


def _largest_error(component: Floats, unsure: Floats, counts: Counts, n: int) -> Floats:
    """Largest standard error of a mean of n components, each within `unsure` of its bin's."""
    if n == 1:
        return np.full(len(counts), np.nan)
    mean = (counts * component).sum(axis=1, keepdims=True) / n
    variance = (counts * (component - mean) ** 2).sum(axis=1) / (n - 1)
    # The sum of two spreads is the largest spread of a sum: that of the bins and within them.
    within = (counts * unsure**2).sum(axis=1) / (n - 1)
    error: Floats = (np.sqrt(variance) + np.sqrt(within)) / np.sqrt(n)
    return error
