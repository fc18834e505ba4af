"""Exact tests that a secret choice within pairs left a trace: at the end, or after any pair."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_PAIRS = 44  # two halves of 2^22 sums each
_ROUNDING = 1e-9  # of the largest sum: sums in another order must not differ
# How boldly is bet on a pair, for differences of 1 on average: bold bets gain twice a pair where
# all agree, careful ones lose little where many do not.
_BETS = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
_DRAWS = 2000  # of pairs, to tell how many will be needed


def sign_flip_p_value(differences: npt.ArrayLike) -> float:
    """Return the chance that fair coins would have made a sum of differences at least as large.

    A difference is what a pair's coin chose, minus what it did not choose. The result is P(Σ sᵢ
    |dᵢ| ≥ Σ dᵢ) over independent fair signs sᵢ: at least 2^−pairs, and 1 where nothing differs. All
    2^pairs outcomes count; none is sampled. No pair, more than `MOST_PAIRS`, or a difference that
    is not finite is a ValueError.

    Notes
    -----
    Fisher's randomisation test. The coins alone make it valid: the differences may be distributed
    in any way and depend on each other. Sums of the two halves of the pairs are sorted and matched
    (Pagano and Tritchler, 1983, count the same by convolution).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not 1 <= len(values) <= MOST_PAIRS:
        raise ValueError(f"differences: a list of 1 to {MOST_PAIRS}, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("differences: not all are finite")
    sizes = np.abs(values)
    half = len(sizes) // 2
    left, right = _sums(sizes[:half]), np.sort(_sums(sizes[half:]))
    least = values.sum() - _ROUNDING * sizes.sum()
    below = np.searchsorted(right, least - left, side="left")
    reached = len(left) * len(right) - int(below.sum())
    return float(reached / 2 ** len(sizes))


def _sums(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sums under all signs, [2^n]."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def sign_flip_e_values(differences: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the evidence after each pair [pairs]: what a bet against fair coins has made of 1.

    With fair coins it ever reaches 1 / α with a chance of at most α, so that one may look after
    each pair and stop at will; and what several runs with different pairs give may be multiplied.
    Differences, float [pairs] or [pairs, statistics], are as for `sign_flip_p_value`; those of
    several statistics are added up, each in units of its root mean square so far.

    Notes
    -----
    The mean over bets b of Π exp(b dᵢ) / cosh(b dᵢ), with d in units of the root mean square of
    the pairs up to i. Given all |dᵢ|, each factor is 1 on average over a fair sign: a test
    martingale (Ville, 1939; Ramdas et al., 2023, arXiv 2210.01948).
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if not values.size or not np.isfinite(values).all():
        raise ValueError("differences: at least one, and all finite")
    counts = np.arange(1, len(values) + 1)[:, None]
    scaled = _scaled(values, np.sqrt(np.square(values).cumsum(axis=0) / counts))
    bets = scaled[:, None] * _BETS
    # log cosh x, where cosh itself would be infinite.
    log_cosh = np.abs(bets) + np.log1p(np.exp(-2 * np.abs(bets))) - np.log(2)
    logs = (bets - log_cosh).cumsum(axis=0)
    return np.asarray(np.exp(logs).mean(axis=1))


def combined(differences: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Add up the differences of several statistics [pairs, statistics], each in units of its RMS.

    The units are the same whatever the coins were, so a test by sign flips stays exact. Of a single
    statistic the differences are returned as they are.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.shape[1] == 1:
        return np.asarray(values[:, 0])
    return _scaled(values, np.sqrt(np.square(values).mean(axis=0)))


def pairs_needed(
    differences: npt.ArrayLike, alpha: float, power: float, most: int, seed: int = 0
) -> int | None:
    """Return after how many pairs like these e-values reach 1 / `alpha` with a chance of `power`.

    Pairs are drawn with replacement from `differences`, as for `sign_flip_e_values`. None if more
    than `most` are needed.
    """
    values = np.asarray(differences, dtype=np.float64)
    generator = np.random.default_rng(seed)
    reached = np.full(_DRAWS, np.inf)
    for draw in range(_DRAWS):
        evidence = sign_flip_e_values(values[generator.integers(len(values), size=most)])
        if evidence.max() >= 1 / alpha:
            reached[draw] = int((evidence >= 1 / alpha).argmax()) + 1
    needed = np.quantile(reached, power, method="higher")
    return int(needed) if np.isfinite(needed) else None


def _scaled(
    values: npt.NDArray[np.float64], units: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Add up statistics [pairs, statistics] in these units; what never differs counts nothing."""
    shares = np.divide(values, units, out=np.zeros_like(values), where=units > 0)
    return np.asarray(shares.sum(axis=1))
