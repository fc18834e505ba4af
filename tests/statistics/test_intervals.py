from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_watermark_guard.statistics.auroc import paired_auroc
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


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("shift", [0.0, 1.2])
def test_covers_as_often_as_promised(correlation, shift):
    """3,000 repetitions: a true coverage of 95 % is measured within 1.5 points."""
    rng = np.random.default_rng(7)
    n, repetitions = 120, 3000
    shared = rng.normal(size=(n, repetitions)) * np.sqrt(correlation)
    own = np.sqrt(1 - correlation)
    baseline = shared + own * rng.normal(size=(n, repetitions))
    marked = shared + own * rng.normal(size=(n, repetitions)) + shift
    truth = _normal_cdf(shift / np.sqrt(2))
    area, error = paired_auroc(baseline, marked)
    low, high = logit_interval(area, error, n, 0.95)
    assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.95, abs=0.015)


def _normal_cdf(z):
    from statistics import NormalDist

    return NormalDist().cdf(z)
