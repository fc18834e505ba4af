from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm

from pytest_watermark_guard.statistics.proportions import (
    paired_difference_interval,
    share_interval,
)

EVENTS = st.lists(st.booleans(), min_size=1, max_size=200)
DIFFERENCES = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=200)
LEVELS = st.sampled_from([0.8, 0.95, 0.99])


@given(EVENTS, LEVELS)
def test_share_agrees_with_scipy(events, level):
    expected = binomtest(sum(events), len(events)).proportion_ci(level, method="wilson")
    assert share_interval(events, level) == pytest.approx(tuple(expected), abs=1e-12)


def test_difference_agrees_with_a_published_one():
    """Bentur et al. (2009), 1 against 7 of 21, in Fagerland, Lydersen & Laake (2014)."""
    low, high = paired_difference_interval([1] + [-1] * 7 + [0] * 13, 0.95)
    assert (low, high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def most_likely_score(first, second, n, difference):
    """Tango's statistic from the definition: the likelihood's maximum found by search."""

    def lack(share):
        cells = [share + difference, share, 1 - 2 * share - difference]
        counts = [first, second, n - first - second]
        return -sum(
            count * np.log(max(cell, 1e-300)) for count, cell in zip(counts, cells, strict=True)
        )

    bounds = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(lack, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    error = np.sqrt((2 * share + difference * (1 - difference)) / n)
    return ((first - second) / n - difference) / error


@pytest.mark.parametrize(
    ("first", "second", "n"), [(12, 2, 50), (1, 7, 21), (5, 5, 40), (3, 1, 10), (20, 9, 35)]
)
def test_difference_is_what_the_score_test_does_not_refute(first, second, n):
    values = [1] * first + [-1] * second + [0] * (n - first - second)
    z = norm.isf(0.025)
    estimate = (first - second) / n
    expected = (
        brentq(lambda at: most_likely_score(first, second, n, at) - z, -0.99, estimate),
        brentq(lambda at: most_likely_score(first, second, n, at) + z, estimate, 0.99),
    )
    assert paired_difference_interval(values, 0.95) == pytest.approx(expected, abs=1e-4)


@given(EVENTS, LEVELS)
def test_complement_mirrors_the_share(events, level):
    low, high = share_interval(events, level)
    assert 0 <= low <= np.mean(events) <= high <= 1
    other = share_interval(np.logical_not(events), level)
    assert other == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(DIFFERENCES, LEVELS)
def test_swapping_mirrors_the_difference(differences, level):
    low, high = paired_difference_interval(differences, level)
    assert -1 <= low <= np.mean(differences) <= high <= 1
    other = paired_difference_interval(np.negative(differences), level)
    assert other == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("interval", [share_interval, paired_difference_interval])
@given(values=EVENTS)
def test_a_higher_level_is_wider(interval, values):
    narrow, wide = interval(values, 0.8), interval(values, 0.99)
    assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


@pytest.mark.parametrize("interval", [share_interval, paired_difference_interval])
@given(values=st.lists(st.booleans(), min_size=2, max_size=60), copies=st.integers(2, 5))
def test_copies_in_a_group_tell_nothing_new(interval, values, copies):
    """As each image being a group of its own: only so many degrees of freedom are left."""
    once = interval(values, 0.95, groups=range(len(values)))
    ids = np.repeat(range(len(values)), copies)
    assert interval(np.repeat(values, copies), 0.95, groups=ids) == pytest.approx(once, abs=1e-9)


@pytest.mark.parametrize("interval", [share_interval, paired_difference_interval])
def test_fewer_groups_say_less(interval):
    values = np.random.default_rng(0).permutation([1] * 20 + [0] * 80)
    ordered = np.sort(values)  # groups of like images
    widths = [
        np.diff(interval(ordered, 0.95, groups=np.arange(100) // size))[0] for size in (1, 4, 20)
    ]
    assert widths[0] < widths[1] < widths[2]


def test_a_single_group_says_nothing():
    assert share_interval([1, 0, 1], 0.95, groups=["a"] * 3) == (0, 1)
    assert paired_difference_interval([1, 0, -1], 0.95, groups=["a"] * 3) == (-1, 1)


@pytest.mark.parametrize("n", [10, 50, 200])
@pytest.mark.parametrize("shares", [(0.1, 0.02), (0.3, 0.1), (0.2, 0.2)])
def test_difference_covers_as_often_as_promised(n, shares):
    rng = np.random.default_rng(n)
    values = rng.choice([1, -1, 0], size=(500, n), p=[*shares, 1 - sum(shares)])
    truth = shares[0] - shares[1]
    bounds = np.array([paired_difference_interval(row, 0.95) for row in values])
    assert ((bounds[:, 0] <= truth) & (truth <= bounds[:, 1])).mean() >= 0.92


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_share_covers_in_groups(rate):
    """60 groups of 5 images that mostly do the same; without them it would hold 2 in 3."""
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(60), 5)
    held, blind = 0, 0
    for _ in range(300):
        alike = rng.random(300) < 0.8
        events = np.where(alike, np.repeat(rng.random(60), 5), rng.random(300)) < rate
        low, high = share_interval(events, 0.95, groups=ids)
        held += low <= rate <= high
        low, high = share_interval(events, 0.95)
        blind += low <= rate <= high
    assert held >= 0.91 * 300
    assert blind < 0.85 * 300


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "one value for each image"), ([[1, 0]], "one value"), ([0.5], "one of 0, 1")],
)
def test_rejects_what_is_no_event(values, message):
    with pytest.raises(ValueError, match=f"events: .*{message}"):
        share_interval(values, 0.95)


def test_rejects_other_differences_levels_and_groups():
    with pytest.raises(ValueError, match="differences: each must be one of -1, 0, 1"):
        paired_difference_interval([2], 0.95)
    with pytest.raises(ValueError, match="level"):
        share_interval([1], 95)
    with pytest.raises(ValueError, match="one for each of 2 images"):
        share_interval([1, 0], 0.95, groups=[1])
