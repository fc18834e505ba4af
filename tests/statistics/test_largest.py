from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import norm

from pytest_watermark_guard.statistics import auroc as blocks, largest as module
from pytest_watermark_guard.statistics.auroc import auroc, paired_auroc
from pytest_watermark_guard.statistics.intervals import logit_interval
from pytest_watermark_guard.statistics.largest import largest_d_interval


def binormal(rng, n, areas, among=0.0):
    """Scores whose noise is shared among units, by that share, and within an image, by half."""
    shape = (n, len(areas))
    noise = [
        np.sqrt(among) * rng.normal(size=(n, 1)) + np.sqrt(1 - among) * rng.normal(size=shape)
        for _ in range(3)
    ]
    low, high = (np.sqrt(0.5) * (noise[0] + own) for own in noise[1:])
    return low, high + np.sqrt(2) * norm.ppf(areas)


@pytest.mark.parametrize(
    ("n", "areas", "among"),
    [
        (15, [0.5] * 100, 0.3),
        (60, [0.5] * 200, 0.0),
        (60, [0.5] * 200, 0.5),
        (60, [0.85] + [0.5] * 99, 0.5),
        (60, [0.1] * 10 + [0.5] * 90, 0.3),
        (60, [0.98] + [0.95] * 20, 0.3),
    ],
)
def test_holds_the_largest_true_d_as_often_as_promised(n, areas, among):
    """100 repetitions; the largest d found would be above the truth in nearly all of them."""
    truth = np.maximum(areas, 1 - np.array(areas)).max()
    missed = 0
    for seed in range(100):
        low, high = largest_d_interval(
            *binormal(np.random.default_rng(seed), n, areas, among), 0.95
        )
        missed += not low <= truth <= high
    assert missed <= 11  # of 5 that are allowed; more have a chance of 0.4 %


def test_the_winner_among_many_is_pulled_down():
    scores = binormal(np.random.default_rng(1), 100, [0.5] * 2000)
    area, error = paired_auroc(*scores)
    naive = logit_interval(area, error, 100, 0.95)
    assert np.maximum(naive[0], 1 - naive[1]).max() > 0.54
    assert largest_d_interval(*scores, 0.95)[0] < 0.52


def test_a_single_leader_pays_little_for_the_others():
    rng = np.random.default_rng(2)
    low, high = binormal(rng, 300, [0.9] + [0.5] * 1000)
    alone = logit_interval(*paired_auroc(low[:, 0], high[:, 0]), 300, 0.95)
    found = largest_d_interval(low, high, 0.95)
    assert found == pytest.approx((alone[0][0], alone[1][0]), abs=0.003)


def test_copies_of_a_unit_count_once():
    """The bootstrap knows that they depend: a correction for 500 would lower the bound by 0.04."""
    low, high = binormal(np.random.default_rng(3), 200, [0.85])
    found = largest_d_interval(np.tile(low, 500), np.tile(high, 500), 0.95)
    assert found == pytest.approx(largest_d_interval(low, high, 0.95), abs=0.005)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 12))
def test_only_the_order_counts_and_sides_are_alike(seed, n, units):
    rng = np.random.default_rng(seed)
    low, high = binormal(rng, n, rng.uniform(0.05, 0.95, units))
    found = largest_d_interval(low, high, 0.9)
    assert 0.5 <= found[0] <= found[1] <= 1
    assert largest_d_interval(np.exp(low), np.exp(high), 0.9) == found
    assert largest_d_interval(high, low, 0.9) == pytest.approx(found, abs=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(3, 60))
def test_a_higher_level_is_wider(seed, n):
    rng = np.random.default_rng(seed)
    scores = binormal(rng, n, rng.uniform(0.05, 0.95, 8))
    narrow, wide = (largest_d_interval(*scores, level) for level in (0.8, 0.99))
    assert wide[0] <= narrow[0]
    assert narrow[1] <= wide[1]


def test_copies_in_a_group_tell_nothing_new():
    low, high = binormal(np.random.default_rng(4), 50, [0.8] * 5)
    once = largest_d_interval(low, high, 0.95)
    ids = np.repeat(np.arange(50), 3)
    copies = [np.repeat(scores, 3, axis=0) for scores in (low, high)]
    assert largest_d_interval(*copies, 0.95, groups=ids) == pytest.approx(once, abs=1e-6)
    blind = largest_d_interval(*copies, 0.95)
    assert blind[1] - blind[0] < 0.7 * (once[1] - once[0])


def test_what_is_known_need_not_be_computed_again():
    scores = binormal(np.random.default_rng(5), 80, [0.8] * 5)
    found = largest_d_interval(*scores, 0.95)
    assert largest_d_interval(*scores, 0.95, paired=paired_auroc(*scores)) == found
    with pytest.raises(ValueError, match="paired: 1 units, but the scores have 5"):
        largest_d_interval(*scores, 0.95, paired=paired_auroc([1.0, 2.0], [2.0, 3.0]))


def test_one_image_and_units_that_never_change():
    assert largest_d_interval([[1.0, 2.0]], [[2.0, 1.0]], 0.95) == (0.5, 1)
    low, high = largest_d_interval(np.zeros((50, 4)), np.zeros((50, 4)), 0.95)
    assert low == 0.5 < high < 0.55


def test_memory_does_not_grow_with_the_units(monkeypatch):
    monkeypatch.setattr(blocks, "MOST_THREADS", 1)
    monkeypatch.setattr(module, "_SCORES", 2**19)
    scores = np.random.default_rng(6).normal(size=(2, 6000, 400)).astype(np.float32)
    tracemalloc.start()
    try:
        low, high = largest_d_interval(*scores, 0.95)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert low <= np.abs(auroc(*scores) - 0.5).max() + 0.5 <= high
    assert peak < 40e6  # a block 20, the draws 8; every unit's influence would be 19 more


@pytest.mark.parametrize(
    ("scores", "level", "message"),
    [
        (np.zeros((2, 3, 0)), 0.95, "at least one unit"),
        (np.zeros((2, 3, 1)), 1.0, "level"),
        (np.full((2, 3, 1), np.nan), 0.95, "finite"),
    ],
)
def test_rejects(scores, level, message):
    with pytest.raises(ValueError, match=message):
        largest_d_interval(*scores, level)
