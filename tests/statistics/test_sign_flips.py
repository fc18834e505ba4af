"""The exact test, against counting all signs one by one and against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pytest_watermark_guard.statistics.sign_flips import MOST_PAIRS, sign_flip_p_value

small = st.lists(st.integers(-4, 4), min_size=1, max_size=10)


@given(small)
def test_it_counts_all_signs(values):
    observed = sum(values)
    signs = list(itertools.product((-1, 1), repeat=len(values)))
    sums = [sum(s * abs(v) for s, v in zip(row, values, strict=True)) for row in signs]
    expected = sum(total >= observed for total in sums) / len(signs)
    assert sign_flip_p_value(values) == expected


def test_scipy_counts_the_same():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(0.4, 1.0, 12)
    found = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert sign_flip_p_value(values) == pytest.approx(found.pvalue, abs=1e-12)


def test_all_alike_is_the_smallest_there_is():
    assert sign_flip_p_value(np.full(32, 0.1)) == 2.0**-32
    assert sign_flip_p_value(np.full(MOST_PAIRS, 1.0)) == 2.0**-MOST_PAIRS


def test_nothing_differs():
    assert sign_flip_p_value(np.zeros(20)) == 1.0


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_under_the_null_no_more_than_alpha(alpha):
    # Differences of any law, heavy-tailed and dependent, with coins for signs.
    rng = np.random.default_rng(1)
    sizes = np.abs(rng.standard_cauchy((4000, 14))) * np.exp(rng.normal(size=(4000, 1)))
    coins = rng.choice((-1.0, 1.0), sizes.shape)
    low = np.mean([sign_flip_p_value(row) <= alpha for row in sizes * coins])
    assert low <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / len(sizes))
    assert low >= alpha / 2  # and it is not merely cautious


@pytest.mark.parametrize(
    "values", [[], [[1.0]], np.zeros(MOST_PAIRS + 1), [1.0, float("nan")]], ids=str
)
def test_what_cannot_be_tested(values):
    with pytest.raises(ValueError, match="differences"):
        sign_flip_p_value(values)
