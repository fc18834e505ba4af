"""Quantiles that intervals and tests share."""

from __future__ import annotations

import math
from statistics import NormalDist


def tail_of(level: float) -> float:
    """Return what a two-sided interval leaves out on each side; a bad level is a ValueError."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    return (1 - level) / 2


def sidak(tail: float, tests: int) -> float:
    """Return the tail of one test such that the least of `tests` independent ones has `tail`."""
    return -math.expm1(math.log1p(-tail) / tests)


def student_quantile(tail: float, freedom: int) -> float:
    """Return what a Student's t exceeds with chance `tail`, up to one half.

    By Wallace's approximation (1959, "Bounds on normal approximations to Student's and the
    chi-square distributions"), within 2 % for 9 degrees of freedom and more. With fewer it is too
    large: for a tail of 0.025 by 1 % at 3, 4 % at 2 and a third at 1.
    """
    normal = -NormalDist().inv_cdf(tail)
    scaled = normal * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(scaled**2 / freedom))
