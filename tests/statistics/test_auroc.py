from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from pytest_watermark_guard.statistics.auroc import auroc, paired_auroc

FINITE = st.floats(-1e300, 1e300, allow_nan=False, allow_infinity=False)
FEW_VALUES = st.sampled_from([-1e30, -1.0, -0.0, 0.0, 1e-310, 1.0, 1.0 + 2**-52, 1e30])
SIZES = st.integers(1, 40)


def scores(values, dtype=np.float64):
    return SIZES.flatmap(lambda n: arrays(dtype, n, elements=values))


def oracle(baseline, marked):
    labels = np.r_[np.zeros(len(baseline)), np.ones(len(marked))]
    return roc_auc_score(labels, np.r_[baseline, marked])


@given(scores(FINITE), scores(FINITE))
def test_agrees_with_scikit_learn(baseline, marked):
    assert auroc(baseline, marked)[0] == pytest.approx(oracle(baseline, marked), abs=1e-12)


@given(scores(FEW_VALUES), scores(FEW_VALUES))
def test_agrees_with_scikit_learn_on_ties(baseline, marked):
    assert auroc(baseline, marked)[0] == pytest.approx(oracle(baseline, marked), abs=1e-12)


@given(
    scores(st.floats(-100, 100, width=32), np.float32),
    scores(st.floats(-100, 100, width=32), np.float32),
)
def test_agrees_with_scikit_learn_in_float32(baseline, marked):
    assert auroc(baseline, marked)[0] == pytest.approx(oracle(baseline, marked), abs=1e-12)


@given(scores(FEW_VALUES), scores(FEW_VALUES))
def test_swapping_the_groups_mirrors_the_area(baseline, marked):
    assert auroc(baseline, marked)[0] == pytest.approx(1 - auroc(marked, baseline)[0], abs=1e-15)


@given(scores(st.integers(-1000, 1000), np.int64), scores(st.integers(-1000, 1000), np.int64))
def test_only_the_order_counts(baseline, marked):
    assert auroc(baseline, marked) == auroc(baseline**3 - 7, marked**3 - 7)


def test_every_unit_by_itself():
    rng = np.random.default_rng(0)
    baseline, marked = rng.normal(size=(30, 7)), rng.normal(0.5, size=(20, 7))
    expected = [oracle(baseline[:, unit], marked[:, unit]) for unit in range(7)]
    np.testing.assert_allclose(auroc(baseline, marked), expected, atol=1e-12)


def test_constant_unit_is_at_chance():
    assert auroc(np.full(5, 3.0), np.full(9, 3.0)) == 0.5
    assert paired_auroc(np.full(5, 3.0), np.full(5, 3.0)) == (0.5, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_rejects_what_cannot_be_ordered(bad, side):
    groups = [np.zeros((3, 2)), np.zeros((3, 2))]
    groups[side][1, 1] = bad
    with pytest.raises(ValueError, match=("baseline", "marked")[side] + ".*finite"):
        auroc(*groups)


@pytest.mark.parametrize(
    ("baseline", "marked", "message"),
    [
        (np.zeros((0, 2)), np.zeros((1, 2)), "baseline: expected shape"),
        (np.zeros((1, 2)), np.zeros((1, 2, 2)), "marked: expected shape"),
        (np.zeros((1, 2)), np.zeros((1, 3)), "2 and 3 units"),
    ],
)
def test_rejects_shapes(baseline, marked, message):
    with pytest.raises(ValueError, match=message):
        auroc(baseline, marked)


def test_pairs_need_as_many_rows():
    with pytest.raises(ValueError, match="as many rows"):
        paired_auroc(np.zeros(3), np.zeros(4))


@given(st.integers(1, 30), st.randoms(use_true_random=False))
def test_paired_area_is_the_area(n, random):
    baseline = np.array([random.randint(0, 5) for _ in range(n)])
    marked = np.array([random.randint(0, 5) for _ in range(n)])
    assert paired_auroc(baseline, marked).auroc == auroc(baseline, marked)


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 0.9]))
def test_standard_error_is_the_spread_over_repetitions(seed, correlation):
    """With correlated scores too, where the unpaired formula would be too wide."""
    rng = np.random.default_rng(seed)
    n, repetitions = 150, 600
    shared = rng.normal(size=(n, repetitions)) * np.sqrt(correlation)
    own = np.sqrt(1 - correlation)
    baseline = shared + own * rng.normal(size=(n, repetitions))
    marked = shared + own * rng.normal(size=(n, repetitions)) + 0.7
    area, error = paired_auroc(baseline, marked)
    assert error.mean() == pytest.approx(area.std(), rel=0.12)
