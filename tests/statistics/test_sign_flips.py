"""The exact test, against counting all signs one by one and against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pytest_watermark_guard.statistics.sign_flips import (
    MOST_PAIRS,
    combined,
    pairs_needed,
    sign_flip_e_values,
    sign_flip_p_value,
)

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


numbers = st.floats(-4, 4).map(lambda x: round(x, 2))


def all_coins(values):
    """Give differences [pairs, statistics] under all ways in which the coins could have fallen."""
    for signs in itertools.product((-1, 1), repeat=len(values)):
        yield values * np.array(signs)[:, None]


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_an_e_value_is_one_on_average_over_all_coins(rows):
    values = np.array(rows)
    evidence = np.array([sign_flip_e_values(tossed) for tossed in all_coins(values)])
    assert evidence.mean(axis=0) == pytest.approx(1)


@given(st.lists(st.tuples(numbers, numbers), min_size=6, max_size=8), st.sampled_from([0.3, 0.05]))
def test_looking_after_each_pair_costs_nothing(rows, alpha):
    values = np.array(rows)
    ever = [sign_flip_e_values(tossed).max() >= 1 / alpha for tossed in all_coins(values)]
    assert np.mean(ever) <= alpha


def test_evidence_grows_where_pairs_agree():
    evidence = sign_flip_e_values(np.full((20, 1), 0.03))
    assert (np.diff(evidence) > 0).all()
    assert evidence[-1] > 1e4
    assert sign_flip_e_values(np.full((20, 1), -0.03))[-1] < 1e-2
    assert (sign_flip_e_values(np.zeros((5, 2))) == 1).all()


def test_no_statistic_drowns_another():
    rng = np.random.default_rng(0)
    large, small = rng.normal(0, 100, 24), np.full(24, 0.01)
    both = combined(np.stack([large, small], axis=1))
    assert sign_flip_p_value(both) < 1e-3 < sign_flip_p_value(large + small)
    assert np.array_equal(combined(small[:, None]), small)
    # The units do not depend on the coins, or the test would not be exact.
    flipped = combined(np.stack([-large, -small], axis=1))
    assert np.array_equal(flipped, -both)


@pytest.mark.parametrize("values", [np.zeros((0, 1)), [[np.nan]], [np.inf]])
def test_evidence_of_what(values):
    with pytest.raises(ValueError, match="at least one, and all finite"):
        sign_flip_e_values(values)


def test_how_many_pairs_are_needed():
    assert pairs_needed(np.full((8, 1), 0.2), 1e-3, 0.9, most=44) == 12
    rng = np.random.default_rng(0)
    weak = rng.normal(0.5, 1, (32, 1))
    few, many = (pairs_needed(weak, alpha, 0.8, most=200) for alpha in (0.05, 1e-3))
    assert 6 < few < many
    assert pairs_needed(weak, 1e-3, 0.8, most=20) is None
    # As planned: drawing such pairs anew gets there in eight of ten.
    fresh = rng.choice(weak, (400, many))
    reached = np.mean([sign_flip_e_values(row).max() >= 1000 for row in fresh])
    assert reached == pytest.approx(0.8, abs=0.06)
