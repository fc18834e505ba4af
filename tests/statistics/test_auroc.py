from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from pytest_watermark_guard.statistics import auroc as module
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


@pytest.mark.parametrize("n", [998, 5000])
def test_many_units_are_scored_in_their_order(n):
    """Enough of them for several chunks, and images enough for several threads."""
    rng = np.random.default_rng(1)
    units = 2**20 // n * 2 + 3
    # Unit k separates at shift k / units, so that units in another order are noticed.
    shared = np.sort(rng.normal(size=n)).astype(np.float32)
    baseline = np.repeat(shared[:, None], units, axis=1)
    marked = baseline + np.arange(units, dtype=np.float32) / units
    area, error = paired_auroc(baseline, marked)
    assert (np.diff(area) >= 0).all()
    np.testing.assert_array_equal(auroc(baseline, marked), area)
    for unit in (0, units // 2, units - 1):
        alone = paired_auroc(baseline[:, unit], marked[:, unit])
        assert (area[unit], error[unit]) == (alone.auroc[0], alone.standard_error[0])
        assert area[unit] == pytest.approx(oracle(baseline[:, unit], marked[:, unit]), abs=1e-12)


SINGLE = st.floats(width=32, allow_nan=False, allow_infinity=False)
FEW_SINGLES = st.sampled_from([-3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0 + 2**-23, 3e38])


@pytest.mark.parametrize("values", [SINGLE, FEW_SINGLES], ids=["any", "few"])
@given(data=st.data())
def test_float32_is_ordered_as_float64_is(values, data):
    n = data.draw(SIZES)
    low, high = (data.draw(arrays(np.float32, (n, 3), elements=values)) for _ in range(2))
    found = paired_auroc(low, high)
    wide = paired_auroc(low.astype(np.float64), high.astype(np.float64))
    np.testing.assert_array_equal(found.auroc, wide.auroc)
    np.testing.assert_array_equal(found.standard_error, wide.standard_error)


@pytest.mark.parametrize("function", [auroc, paired_auroc])
def test_takes_no_second_copy_of_the_scores(function, monkeypatch):
    monkeypatch.setattr(module, "MOST_THREADS", 2)  # each has a block of its own
    scores = np.random.default_rng(2).normal(size=(2, 1000, 20_000)).astype(np.float32)
    tracemalloc.start()
    try:
        function(*scores)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < scores.nbytes / 2


@pytest.mark.parametrize("function", [auroc, paired_auroc])
def test_leaves_the_scores_as_they_are(function):
    # One column is contiguous as it is: nothing makes a copy that could be sorted in place.
    baseline, marked = np.array([3.0, 1.0, 2.0]), np.array([2.0, 5.0, 0.0])
    function(baseline, marked)
    np.testing.assert_array_equal([baseline, marked], [[3, 1, 2], [2, 5, 0]])


@pytest.mark.parametrize(
    ("baseline", "marked"),
    [(np.float32, np.float64), (np.float16, np.float16), (np.int64, np.float32), (">f4", "<f4")],
)
def test_any_types_may_meet(baseline, marked):
    rng = np.random.default_rng(3)
    low = rng.integers(-5, 5, size=(40, 3)).astype(baseline)
    high = rng.integers(-4, 6, size=(30, 3)).astype(marked)
    expected = [oracle(low[:, unit], high[:, unit]) for unit in range(3)]
    np.testing.assert_allclose(auroc(low, high), expected, atol=1e-12)


def test_no_units_have_no_areas():
    nothing = np.zeros((3, 0))
    assert auroc(nothing, nothing).shape == (0,)
    assert paired_auroc(nothing, nothing).standard_error.shape == (0,)


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


@given(SIZES.flatmap(lambda n: arrays(np.float64, (2, n), elements=FEW_VALUES)))
def test_standard_error_is_that_of_the_ranks(groups):
    """DeLong's components from mid-ranks, a way that shares nothing with ours."""
    n = groups.shape[1]
    together = rankdata(groups).reshape(2, n)
    components = (together - rankdata(groups, axis=1)) / n
    error = paired_auroc(*groups).standard_error[0]
    if n == 1:
        assert np.isnan(error)
    else:
        # An image's marked score adds to A what its baseline score, ranked high, takes from it.
        expected = np.std(components[1] - components[0], ddof=1) / np.sqrt(n)
        assert error == pytest.approx(expected, rel=1e-9, abs=1e-15)


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


@given(
    SIZES.flatmap(lambda n: arrays(np.float64, (2, n), elements=FEW_VALUES)),
    st.integers(2, 4),
    st.randoms(use_true_random=False),
)
def test_copies_in_a_group_tell_nothing_new(scores, copies, random):
    once = paired_auroc(*scores)
    rows = [image for image in range(scores.shape[1]) for _ in range(copies)]
    random.shuffle(rows)
    many = paired_auroc(*scores[:, rows], groups=[f"photo {image}" for image in rows])
    np.testing.assert_allclose(many, once, rtol=1e-9, atol=1e-15)


def test_error_of_groups_is_that_of_their_sums():
    """Obuchowski's formula with groups of unequal sizes, from mid-ranks."""
    rng = np.random.default_rng(5)
    low, high = rng.integers(0, 9, size=30), rng.integers(2, 11, size=30)
    ids = rng.integers(0, 8, size=30)
    together = rankdata([low, high]).reshape(2, 30)
    wins = (together[1] - rankdata(high)) / 30
    losses = (together[0] - rankdata(low)) / 30
    sums = [
        (wins[ids == one] - wins.mean()).sum() - (losses[ids == one] - losses.mean()).sum()
        for one in np.unique(ids)
    ]
    expected = np.sqrt(np.sum(np.square(sums)) * len(sums) / (len(sums) - 1)) / 30
    assert paired_auroc(low, high, groups=ids).standard_error[0] == pytest.approx(expected)


def test_one_group_knows_no_error():
    assert np.isnan(paired_auroc([1.0, 2.0], [3.0, 4.0], groups=["a", "a"]).standard_error[0])


@pytest.mark.parametrize("groups", [[1, 2], [[1, 2, 3]]])
def test_each_image_has_a_group(groups):
    with pytest.raises(ValueError, match="one for each of 3 images"):
        paired_auroc(np.zeros(3), np.zeros(3), groups=groups)
