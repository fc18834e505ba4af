"""An exact test that a secret choice within pairs left a trace."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_PAIRS = 44  # two halves of 2^22 sums each
_ROUNDING = 1e-9  # of the largest sum: sums in another order must not differ


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
