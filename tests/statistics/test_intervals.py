from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial, norm, rankdata
from sklearn.metrics import roc_auc_score

from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.statistics.intervals import (
    bootstrap_interval,
    logit_interval,
    paired_difference_interval,
)

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
    low, high = logit_interval(np.array([1.0, 0.0]), np.zeros(2), 5, 0.95)
    assert low[0] == pytest.approx(0.025 ** (1 / 5))
    assert high[0] == 1
    assert (low[1], high[1]) == (0, pytest.approx(1 - 0.025 ** (1 / 5)))


def test_one_image_says_nothing():
    area, error = paired_auroc([1.0], [2.0])
    low, high = logit_interval(area, error, 1, 0.95)
    assert (low[0], high[0]) == (0, 1)


@pytest.mark.parametrize("level", [0, 1, -0.5, 95])
def test_rejects_levels(level):
    with pytest.raises(ValueError, match="level"):
        logit_interval(np.array([0.5]), np.array([0.1]), 10, level)
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], [2.0], level)
    with pytest.raises(ValueError, match="level"):
        paired_difference_interval([0], level)


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
    """2,000 repetitions: a true coverage of 95 % is measured within 1.5 points."""
    scores = paired_scores(120, 2000, correlation, shift, tied)
    low, high = logit_interval(*paired_auroc(*scores), 120, 0.95)
    truth = true_area(shift, tied)
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.95, abs=0.015)


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
    n = 300
    scores = paired_scores(n, 12, correlation, 0.7, tied)
    bootstrap = bootstrap_interval(*scores, 0.95, resamples=1000)
    logit = logit_interval(*paired_auroc(*scores), n, 0.95)
    width = np.mean(logit[1] - logit[0])
    # The mean over units of a bound: its own scatter is a few hundredths of the width.
    np.testing.assert_allclose(
        np.mean(bootstrap, axis=1), np.mean(logit, axis=1), atol=0.06 * width
    )


def test_bootstrap_resamples_whole_images():
    """Three images have 27 resamples: quantiles of their areas, one by one."""
    baseline, marked = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 0.0])
    labels = np.repeat([0, 1], 3)
    areas = []
    for images in np.ndindex(3, 3, 3):
        drawn = list(images)
        areas.append(roc_auc_score(labels, np.r_[baseline[drawn], marked[drawn]]))
    low, high = bootstrap_interval(baseline, marked, 0.6, resamples=20_000)
    expected = np.quantile(areas, [0.2, 0.8], method="inverted_cdf")
    assert (low[0], high[0]) == pytest.approx(tuple(expected), abs=1e-12)


def test_bootstrap_repeats_itself_and_knows_no_error_where_groups_are_apart():
    scores = paired_scores(50, 2, 0.0, 1.0)
    once, again = (bootstrap_interval(*scores, 0.9, resamples=100, seed=3) for _ in range(2))
    other = bootstrap_interval(*scores, 0.9, resamples=100, seed=4)
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    assert bootstrap_interval([1.0, 2.0], [3.0, 4.0], 0.9, resamples=10) == (1.0, 1.0)


def test_bootstrap_needs_pairs_and_resamples():
    with pytest.raises(ValueError, match="as many rows"):
        bootstrap_interval(np.zeros(3), np.zeros(4), 0.9)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap_interval(np.zeros(3), np.zeros(3), 0.9, resamples=0)


def differences(won, lost, alike):
    return [1] * won + [-1] * lost + [0] * alike


def test_a_published_example_of_paired_shares():
    """Airway hyper-responsiveness, in Fagerland, Lydersen and Laake (2014), table 6."""
    found = paired_difference_interval(differences(1, 7, 13), 0.95)
    assert found == pytest.approx((-0.517, -0.026), abs=5e-4)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 300), st.floats(0.5, 0.999))
def test_bounds_are_where_the_score_test_begins_to_reject(won, lost, alike, level):
    """The test with the share of losses found by maximising the likelihood."""
    n = won + lost + alike
    low, high = paired_difference_interval(differences(won, lost, alike), level)
    assert -1 <= low < (won - lost) / n < high <= 1
    for bound in (low, high):
        least, most = max(0.0, -bound), (1 - bound) / 2

        def surprise(share, bound=bound):
            cells = (won, share + bound), (lost, share), (alike, 1 - 2 * share - bound)
            return -sum(k * np.log(max(p, 1e-300)) for k, p in cells if k)

        best = minimize_scalar(
            surprise, bounds=(least, most), method="bounded", options={"xatol": 1e-12}
        ).x
        error = np.sqrt((2 * best + bound - bound**2) / n)
        z = abs((won - lost) / n - bound) / error
        assert z == pytest.approx(norm.ppf((1 + level) / 2), rel=1e-3)


@pytest.mark.parametrize("shares", [(0.02, 0.02), (0.1, 0.05), (0.3, 0.1)])
def test_paired_shares_are_covered_as_often_as_promised(shares):
    """Over all outcomes of 60 images, by their exact chances."""
    n, (wins, losses) = 60, shares
    covered = 0.0
    for won in range(n + 1):
        for lost in range(n + 1 - won):
            chance = multinomial.pmf([won, lost, n - won - lost], n, [*shares, 1 - sum(shares)])
            if chance > 1e-6:
                low, high = paired_difference_interval(differences(won, lost, n - won - lost), 0.95)
                covered += chance * (low <= wins - losses <= high)
    assert 0.93 < covered < 0.99


def test_mirrored_differences_and_groups():
    values = np.array(differences(9, 4, 87))
    low, high = paired_difference_interval(values, 0.9)
    assert paired_difference_interval(-values, 0.9) == pytest.approx((-high, -low))
    assert paired_difference_interval(values, 0.9, range(100)) == pytest.approx((low, high))
    # Each value five times in its group tells as much as once.
    assert paired_difference_interval(
        np.repeat(values, 5), 0.9, np.repeat(range(100), 5)
    ) == pytest.approx((low, high))
    assert paired_difference_interval([0] * 50, 0.9, [0, 1] * 25) == pytest.approx(
        paired_difference_interval([0, 0], 0.9)
    )


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([], None, "at least one"),
        ([0.5], None, "must be -1, 0 or 1"),
        ([np.nan], None, "must be -1, 0 or 1"),
        ([[1]], None, "shape"),
        ([1, 0], [1], "one for each of 2 values"),
    ],
)
def test_no_paired_differences(values, groups, message):
    with pytest.raises(ValueError, match=message):
        paired_difference_interval(values, 0.95, groups)
