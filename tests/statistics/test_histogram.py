from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pytest_watermark_guard.statistics.auroc import auroc, paired_auroc
from pytest_watermark_guard.statistics.histogram import ScoreHistogram, histogram_auroc

CONTINUOUS = st.floats(-1e300, 1e300, allow_nan=False, allow_infinity=False)
TIED = st.sampled_from([-1.0, -0.0, 0.0, 5e-324, 1.0, 1.0 + 2**-52, 2.0, 1e30])
BINS = st.integers(1, 12)


@st.composite
def groups(draw, same_size=False):
    """Baseline, marked and the first sample: each [n, 2], of few or of many different values."""
    values = draw(st.sampled_from([CONTINUOUS, TIED]))
    sizes = [draw(st.integers(1, 30)) for _ in range(3)]
    if same_size:
        sizes[1] = sizes[0]
    return [draw(arrays(np.float64, (n, 2), elements=values)) for n in sizes]


def filled(edges, scores):
    histogram = ScoreHistogram(edges)
    histogram.add(scores)
    return histogram


def binned(baseline, marked, sample, bins):
    edges = ScoreHistogram.from_sample(sample, bins).edges
    return histogram_auroc(filled(edges, baseline), filled(edges, marked))


@given(groups(), BINS)
def test_is_never_further_off_than_its_bound(scores, bins):
    baseline, marked, _ = scores
    found = binned(*scores, bins)
    assert (np.abs(found.auroc - auroc(baseline, marked)) <= found.bound + 1e-15).all()
    assert (found.bound <= 0.5).all()


@given(groups(same_size=True), BINS, st.randoms(use_true_random=False))
def test_standard_error_holds_for_every_pairing(scores, bins, random):
    baseline, marked, _ = scores
    found = binned(*scores, bins)
    order = list(range(len(baseline)))
    random.shuffle(order)
    for images in (order, np.argsort(baseline[:, 0])):
        exact = paired_auroc(baseline[images], np.sort(marked, axis=0)).standard_error
        if len(baseline) == 1:
            assert np.isnan(found.standard_error).all()
        else:
            assert (exact <= found.standard_error + 1e-12).all()


def test_standard_error_is_close_to_the_unpaired_one():
    """Not merely large: independent scores need the root of the sum of squares, at most √2 less."""
    rng = np.random.default_rng(0)
    baseline, marked = rng.normal(size=(2, 2000, 4))
    found = binned(baseline, marked, baseline, 512)
    exact = paired_auroc(baseline, marked).standard_error
    np.testing.assert_allclose(found.standard_error / exact, np.sqrt(2), rtol=0.05)


def test_bound_is_the_share_of_pairs_in_one_bin():
    found = histogram_auroc(filled([[0, 10]], [-1.0, 1, 2, 3, 11]), filled([[0, 10]], [2.0, 4, 5]))
    assert (found.auroc[0], found.bound[0]) == ((3 + 4.5) / 15, 4.5 / 15)


def test_thousand_bins_are_near_exact():
    rng = np.random.default_rng(1)
    baseline, marked = rng.normal(size=(5000, 3)), rng.normal(0.7, size=(5000, 3))
    edges = ScoreHistogram.from_sample(baseline[:1000]).edges
    assert edges.shape == (3, 1023)
    found = histogram_auroc(filled(edges, baseline), filled(edges, marked))
    assert (found.bound < 0.003).all()


def test_frequent_value_has_a_bin_to_itself():
    """As zero has behind a ReLU: its pairs are ties for certain."""
    rng = np.random.default_rng(2)
    baseline = np.maximum(rng.normal(size=(1000, 2)), 0)
    marked = np.maximum(rng.normal(size=(1000, 2)), 0)
    found = binned(baseline, marked, baseline, 256)
    assert (found.bound < 0.003).all()
    few = rng.integers(0, 4, size=(2, 500, 3)).astype(float)
    found = binned(*few, few[0], 64)
    np.testing.assert_array_equal(found.auroc, auroc(*few))
    assert (found.bound == 0).all()


@pytest.mark.parametrize(("ulps", "bound"), [(1, 0.0), (2, 0.5)])
def test_only_neighbouring_edges_make_ties_certain(ulps, bound):
    edges = [[1.0, 1.0 + ulps * 2**-52]]
    found = histogram_auroc(filled(edges, [1.0]), filled(edges, [edges[0][1] - 2**-52]))
    assert (found.auroc[0], found.bound[0]) == (0.5, bound)


@given(groups(), BINS, st.integers(1, 29))
def test_counts_are_the_same_in_any_split(scores, bins, cut):
    everything, _, sample = scores
    empty = ScoreHistogram.from_sample(sample, bins)
    whole = filled(empty.edges, everything)
    parts = [part for part in (everything[:cut], everything[cut:]) if len(part)]
    one_by_one, merged = ScoreHistogram(empty.edges), ScoreHistogram(empty.edges)
    for part in reversed(parts):
        one_by_one.add(part)
        merged.merge(filled(empty.edges, part))
    for histogram in (one_by_one, merged):
        np.testing.assert_array_equal(histogram.counts, whole.counts)
        assert histogram.n_images == whole.n_images == len(everything)
    assert (whole.counts.sum(axis=1) == len(everything)).all()


def test_sample_is_not_counted():
    assert ScoreHistogram.from_sample([1.0, 2.0, 3.0], 4).n_images == 0


def test_outer_bins_are_open():
    histogram = filled([[0.0, 1.0]], [-1e308, 0.0, 1.0, 1e308])
    assert histogram.counts.tolist() == [[1, 1, 2]]


def test_rejects_other_edges():
    one, other = filled([[0.0, 1.0]], [1.0]), filled([[0.0, 2.0]], [1.0])
    with pytest.raises(ValueError, match="different edges"):
        one.merge(other)
    with pytest.raises(ValueError, match="different edges"):
        histogram_auroc(one, other)
    assert one.n_images == 1


@pytest.mark.parametrize("edges", [[1.0, 2.0], [[2.0, 1.0]], [[np.nan]]])
def test_rejects_edges(edges):
    with pytest.raises(ValueError, match="edges"):
        ScoreHistogram(edges)


def test_rejects_scores_and_counts_nothing_of_them():
    histogram = ScoreHistogram([[0.0], [1.0]])
    for scores, message in (
        ([[0.0, np.nan]], "finite"),
        ([[0.0, 1.0, 2.0]], "2 units, the scores have 3"),
        (np.zeros((0, 2)), "expected shape"),
    ):
        with pytest.raises(ValueError, match=message):
            histogram.add(scores)
    assert not histogram.counts.any()
    with pytest.raises(ValueError, match="need scores"):
        histogram_auroc(histogram, histogram)
    with pytest.raises(ValueError, match="bins"):
        ScoreHistogram.from_sample([1.0], 0)
