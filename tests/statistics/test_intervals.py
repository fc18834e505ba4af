from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from scipy.stats import norm, rankdata

from pytest_watermark_guard.statistics.auroc import auroc, paired_auroc
from pytest_watermark_guard.statistics.intervals import logit_interval

AREAS = st.floats(0, 1)


@example(5e-324, 0.5, 1, 0.5)
@given(AREAS, st.floats(0, 0.5), st.integers(1, 5000), st.floats(0.01, 0.999))
def test_holds_the_area_within_zero_and_one(area, error, n, level):
    low, high = logit_interval(np.array([area]), np.array([error]), n, level)
    assert 0 <= low[0] <= area + 1e-12
    assert area - 1e-12 <= high[0] <= 1


@given(st.integers(0, 1024).map(lambda k: k / 1024), st.floats(0, 0.2), st.integers(2, 1000))
def test_mirrors_with_the_area(area, error, n):
    low, high = logit_interval(np.array([area]), np.array([error]), n, 0.95)
    mirrored_low, mirrored_high = logit_interval(np.array([1 - area]), np.array([error]), n, 0.95)
    np.testing.assert_allclose([low, high], [1 - mirrored_high, 1 - mirrored_low], atol=1e-9)


def test_perfect_separation_of_few_images_is_not_certainty():
    """Five images make two disjoint pairs."""
    low, high = logit_interval(np.array([1.0, 0.0]), np.zeros(2), 5, 0.95)
    assert low[0] == pytest.approx(0.025 ** (1 / 2))
    assert high[0] == 1
    assert (low[1], high[1]) == (0, pytest.approx(1 - 0.025 ** (1 / 2)))


@pytest.mark.parametrize("n", [6, 40])
def test_perfect_separation_is_as_surprising_as_the_bound_says(n):
    """At the bound, in the worst case: an image that loses does so with both of its scores."""
    bound = logit_interval(np.ones(1), np.zeros(1), n, 0.95)[0][0]
    loses = np.random.default_rng(0).random((n, 4000)) < 1 - np.sqrt(bound)
    areas = auroc(np.where(loses, 3, 1), np.where(loses, 0, 2))
    assert (areas == 1).mean() == pytest.approx(0.025, abs=0.008)


@given(st.floats(0.5, 1, exclude_max=True), st.floats(1e-12, 0.1), st.integers(2, 2000))
def test_no_area_below_one_has_a_bound_above_that_of_one(area, error, n):
    areas, errors = np.array([area, 1.0]), np.array([error, 0.0])
    low, _ = logit_interval(areas, errors, n, 0.95)
    assert low[0] <= low[1]


@given(st.floats(0.01, 0.99), st.floats(1e-3, 0.2), st.integers(2, 500), st.integers(1, 500))
def test_fewer_images_or_groups_with_the_same_error_say_less(area, error, n, more):
    few = logit_interval(np.array([area]), np.array([error]), n, 0.95)
    many = logit_interval(np.array([area]), np.array([error]), n + more, 0.95)
    assert few[0] <= many[0] + 1e-12
    assert few[1] >= many[1] - 1e-12


def test_a_unit_that_never_changed_may_do_so_on_the_next_image():
    area, error = paired_auroc(np.zeros(20), np.zeros(20))
    low, high = logit_interval(area, error, 20, 0.95)
    assert (area[0], error[0]) == (0.5, 0)
    assert low[0] < 0.46
    assert high[0] > 0.54


def test_one_image_says_nothing():
    area, error = paired_auroc([1.0], [2.0])
    low, high = logit_interval(area, error, 1, 0.95)
    assert (low[0], high[0]) == (0, 1)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_rejects_levels(level):
    with pytest.raises(ValueError, match="level"):
        logit_interval(np.array([0.5]), np.array([0.1]), 10, level)


def paired_scores(n, repetitions, correlation, shift, tied=False):
    rng = np.random.default_rng(7)
    shared = rng.normal(size=(n, repetitions)) * np.sqrt(correlation)
    own = np.sqrt(1 - correlation)
    baseline = shared + own * rng.normal(size=(n, repetitions))
    marked = shared + own * rng.normal(size=(n, repetitions)) + shift
    return (np.round(baseline), np.round(marked)) if tied else (baseline, marked)


def true_area(shift, tied):
    """A compares different images, so their correlation is of no account."""
    if not tied:
        return norm.cdf(shift / np.sqrt(2))
    values = np.arange(-12, 13)
    low, high = (np.diff(norm.cdf(np.append(values - 0.5, 12.5) - mean)) for mean in (0, shift))
    return high @ (np.cumsum(low) - low / 2)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shift", [0.0, 1.2])
def test_covers_as_often_as_promised(correlation, shift, tied):
    """93 to 97 %."""
    scores = paired_scores(120, 2000, correlation, shift, tied)
    low, high = logit_interval(*paired_auroc(*scores), 120, 0.95)
    truth = true_area(shift, tied)
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.33, 3.29, 4.4])
@pytest.mark.parametrize("n", [10, 30])
def test_covers_with_few_images_and_near_one(n, shift):
    low, high = logit_interval(*paired_auroc(*paired_scores(n, 2000, 0.5, shift)), n, 0.95)
    truth = true_area(shift, tied=False)
    assert ((low <= truth) & (truth <= high)).mean() >= 0.94


@pytest.mark.parametrize("share", [0.025, 0.005, 0.001])
def test_covers_where_an_image_seldom_loses(share):
    """One that does loses with both scores: the sample has none or a few of them."""
    loses = np.random.default_rng(1).random((50, 4000)) < share
    area, error = paired_auroc(np.where(loses, 3, 1), np.where(loses, 0, 2))
    low, high = logit_interval(area, error, 50, 0.95)
    truth = (1 - share) ** 2
    assert ((low <= truth) & (truth <= high)).mean() >= 0.94


def test_covers_where_images_have_near_duplicates():
    rng = np.random.default_rng(8)
    ids = np.repeat(np.arange(40), 5)
    scores = [np.repeat(each, 5, axis=0) for each in paired_scores(40, 1000, 0.5, 1.2)]
    scores = [each + 0.2 * rng.normal(size=each.shape) for each in scores]
    truth = norm.cdf(1.2 / np.sqrt(2 * 1.04))
    low, high = logit_interval(*paired_auroc(*scores, groups=ids), 40, 0.95)
    assert ((low <= truth) & (truth <= high)).mean() >= 0.93
    low, high = logit_interval(*paired_auroc(*scores), 200, 0.95)
    assert ((low <= truth) & (truth <= high)).mean() < 0.75, "what ignoring them would do"


def test_ignoring_the_pairing_would_be_three_times_too_wide():
    """At correlation 0.9; the plain DeLong error is the one without the covariance."""
    n = 120
    baseline, marked = paired_scores(n, 1000, 0.9, 0.0)
    area, error = paired_auroc(baseline, marked)
    together = rankdata(np.concatenate([baseline, marked]), axis=0)
    losses = (together[:n] - rankdata(baseline, axis=0)) / n
    wins = (together[n:] - rankdata(marked, axis=0)) / n
    unpaired = np.sqrt((wins.var(axis=0, ddof=1) + losses.var(axis=0, ddof=1)) / n)
    assert error.mean() / area.std() == pytest.approx(1, abs=0.1)
    assert unpaired.mean() / area.std() == pytest.approx(3, abs=0.4)
    low, high = logit_interval(area, unpaired, n, 0.95)
    assert ((low <= 0.5) & (high >= 0.5)).all()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_bootstrap_finds_the_same_interval(correlation, tied):
    """The percentile interval over resampled images, each with both its scores."""
    n = 300
    scores = paired_scores(n, 12, correlation, 0.7, tied)
    drawn = np.random.default_rng(0).integers(n, size=(1000, n))
    areas = [auroc(scores[0][images], scores[1][images]) for images in drawn]
    bootstrap = np.quantile(areas, [0.025, 0.975], axis=0)
    logit = logit_interval(*paired_auroc(*scores), n, 0.95)
    width = np.mean(logit[1] - logit[0])
    # The mean over units of a bound: its own scatter is a few hundredths of the width.
    np.testing.assert_allclose(
        np.mean(bootstrap, axis=1), np.mean(logit, axis=1), atol=0.06 * width
    )
