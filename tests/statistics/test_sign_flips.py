"""The exact test, against counting all signs one by one and against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pytest_watermark_guard.statistics import sign_flips
from pytest_watermark_guard.statistics.sign_flips import (
    FLIPS,
    MOST_PAIRS,
    agreement_gains,
    agreement_p_value,
    less_expected,
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


@pytest.mark.parametrize("values", [np.zeros((0, 1)), [[np.nan]], [np.inf]])
def test_evidence_of_what(values):
    with pytest.raises(ValueError, match="at least one, and all finite"):
        sign_flip_e_values(values)


def toss(agreement, lead, signs):
    return agreement * np.outer(signs, signs), lead * signs


@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.booleans())
def test_agreement_counts_all_signs(pairs, seed, known):
    rng = np.random.default_rng(seed)
    changes = rng.integers(-2, 3, (pairs, 4))
    agreement, lead = changes @ changes.T, rng.integers(-2, 3, pairs) * known

    def statistic(products, steps):
        products = products - np.diag(np.diag(products))
        size, length = np.sqrt(2 * (products**2).sum()), np.sqrt((steps**2).sum())
        return products.sum() / (size or 1) + steps.sum() / (length or 1)

    everyone = [
        statistic(*toss(agreement, lead, np.array(signs)))
        for signs in itertools.product((-1, 1), repeat=pairs)
    ]
    expected = np.mean(np.array(everyone) >= statistic(agreement, lead) - 1e-9)
    assert agreement_p_value(agreement, lead, 0) == expected


def test_random_signs_are_as_exact_as_all(monkeypatch):
    rng = np.random.default_rng(3)
    changes = rng.normal(0.4, 1, (14, 6))
    agreement, lead = changes @ changes.T, rng.normal(0.2, 1, 14)
    exact = agreement_p_value(agreement, lead, 0)
    monkeypatch.setattr(sign_flips, "MOST_ENUMERATED", 0)
    sampled = agreement_p_value(agreement, lead, 0)
    assert 1e-3 < exact < 0.9
    assert sampled == pytest.approx(exact, rel=0.05)
    # Never zero: the coins' own signs count.
    alike = np.ones((30, 30))
    assert agreement_p_value(alike, np.ones(30), 0) == 1 / (FLIPS + 1)


def test_pairs_that_agree_on_nothing_known():
    changes = np.random.default_rng(0).normal(size=(24, 1)) ** 2 * np.ones((24, 5))
    assert agreement_p_value(changes @ changes.T, np.zeros(24), 0) < 1e-5
    assert agreement_p_value(np.zeros((24, 24)), np.zeros(24), 0) == 1


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_agreement_under_the_null_no_more_than_alpha(alpha):
    rng = np.random.default_rng(2)
    low = 0
    for _ in range(1500):
        changes = np.abs(rng.standard_cauchy((10, 1))) * rng.normal(1, 1, (10, 3))
        signs = rng.choice((-1, 1), 10)
        low += agreement_p_value(*toss(changes @ changes.T, changes[:, 0], signs), 0) <= alpha
    assert low / 1500 <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 1500)


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_evidence_of_agreement_is_one_on_average(pairs, seed):
    rng = np.random.default_rng(seed)
    changes = rng.normal(0.5, 1, (pairs, 3))
    agreement, lead = changes @ changes.T, rng.normal(0.5, 1, pairs)
    evidence = [
        sign_flip_e_values(agreement_gains(*toss(agreement, lead, np.array(signs))))
        for signs in itertools.product((-1, 1), repeat=pairs)
    ]
    assert np.mean(evidence, axis=0) == pytest.approx(1)


def test_how_many_pairs_are_needed():
    none = np.zeros((32, 32))
    assert pairs_needed(none, np.full(32, 0.2), 1e-3, 0.9) == 12
    weak = np.random.default_rng(0).normal(0.8, 1, 32)
    few, many = (pairs_needed(none, weak, alpha, 0.8) for alpha in (0.1, 1e-2))
    assert 4 < few < many
    assert pairs_needed(none, weak, 1e-9, 0.8) is None
    changes = weak[:, None] + np.zeros((32, 4))
    assert pairs_needed(changes @ changes.T, np.zeros(32), 1e-2, 0.8) <= many + 3


pairs_of_numbers = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=8
)


@given(pairs_of_numbers, st.integers(0, 2**8 - 1))
def test_another_coin_changes_the_sign_of_what_is_left(rows, coins):
    values, expected = np.array(rows, dtype=float).T
    signs = np.array([1 - 2 * (coins >> pair & 1) for pair in range(len(rows))])
    left = less_expected(values, expected)
    assert np.array_equal(less_expected(signs * values, signs * expected), signs * left)


@given(pairs_of_numbers)
def test_what_is_left_is_no_larger(rows):
    values, expected = np.array(rows, dtype=float).T
    left = less_expected(values, expected)
    assert np.square(left).sum() <= np.square(values).sum() * (1 + 1e-12)
    # All that least squares would take, but never more than was expected, nor its opposite.
    if np.square(expected).sum() > 0:
        share = np.linalg.lstsq(expected[:, None], values, rcond=None)[0][0]
        assert np.allclose(left, values - np.clip(share, 0, 1) * expected)


def test_what_was_expected_does_not_hide_a_mark():
    rng = np.random.default_rng(0)
    expected = rng.normal(0, 3, 32)
    values = expected + rng.normal(1, 0.5, 32)
    assert sign_flip_p_value(values) > 0.01
    assert sign_flip_p_value(less_expected(values, expected)) < 1e-8


@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_under_the_null_what_was_expected_finds_no_more(alpha):
    """Whoever made up what was expected did not know the coins."""
    rng = np.random.default_rng(0)
    by_pair = np.abs(rng.normal(size=12))
    found = 0
    for _ in range(2000):
        signs = rng.integers(2, size=12) * 2 - 1
        found += sign_flip_p_value(less_expected(signs * by_pair, signs * by_pair**2)) <= alpha
    assert found <= 2000 * alpha + 4 * np.sqrt(2000 * alpha)
