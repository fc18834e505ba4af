from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy.stats import norm

from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.statistics.decisions import decide

ORDER = ["below", "unclear", "reaches"]
AREAS = st.floats(0.5, 1)
ERRORS = st.floats(1e-4, 0.2)
IMAGES = st.integers(2, 1500)
THRESHOLDS = st.sampled_from([0.8, 0.9, 0.95])


def one(area, error, n, threshold=0.95, **level):
    return decide(np.array([area]), np.array([error]), n, threshold, **level)


def binormal(n, areas, correlation=0.5, seed=0):
    rng = np.random.default_rng(seed)
    shared, low, high = rng.normal(size=(3, n, len(areas)))
    shared, own = np.sqrt(correlation) * shared, np.sqrt(1 - correlation)
    return shared + own * low, shared + own * high + np.sqrt(2) * norm.ppf(areas)


@pytest.mark.parametrize(
    ("areas", "n", "answer"),
    [
        ([0.99, 0.7], 300, "reaches"),
        ([0.01, 0.3], 300, "reaches"),
        ([0.8, 0.7], 300, "below"),
        ([0.2, 0.7], 300, "below"),
        ([0.95, 0.7], 300, "unclear"),
        ([0.8, 0.7], 6, "unclear"),
    ],
)
def test_tells_clear_cases(areas, n, answer):
    assert decide(*paired_auroc(*binormal(n, areas)), n, 0.95).answer == answer


@pytest.mark.parametrize("threshold", [0.8, 0.9, 0.95, 0.99])
def test_perfect_separation_of_few_images_is_no_proof(threshold):
    """N images are all on the right side of each other with chance threshold^n."""
    least = int(np.ceil(np.log(0.9 * 0.05) / np.log(threshold)))
    answer, needed = one(1.0, 0.0, least - 1, threshold)
    assert answer == "unclear"
    assert least <= needed <= least + 1
    assert one(1.0, 0.0, needed, threshold).answer == "reaches"
    assert one(0.0, 0.0, needed, threshold).answer == "reaches"


def test_no_images_show_that_one_is_reached():
    assert one(1.0, 0.0, 10**6, threshold=1) == ("unclear", None)
    assert one(0.99, 0.01, 50, threshold=1).answer == "below"


def test_few_images_refute_little():
    """Two images at chance say nothing; with an error of 0.1, 0.8 is refuted by some more."""
    assert one(0.5, 0.1, 2).answer == "unclear"
    assert one(0.5, 0.1, 10).answer == "below"
    assert one(0.88, 0.06, 10).answer == "unclear"


def test_an_area_at_the_threshold_is_never_told():
    assert one(0.95, 0.01, 100) == ("unclear", None)


def test_one_image_tells_nothing():
    assert decide(*paired_auroc([[0.0]], [[1.0]]), 1, 0.9) == ("unclear", None)


@given(AREAS, ERRORS, IMAGES, THRESHOLDS)
def test_sides_are_alike(area, error, n, threshold):
    area = round(area * 1024) / 1024  # so that 1 - area is exact
    assert one(area, error, n, threshold) == one(1 - area, error, n, threshold)


@given(st.floats(20, 2000), AREAS, AREAS, IMAGES, THRESHOLDS)
def test_a_higher_area_is_never_nearer_to_below(trials, area, other, n, threshold):
    """With the error of so many trials."""
    answers = [
        one(value, np.sqrt(value * (1 - value) / trials), n, threshold).answer
        for value in sorted([area, other])
        if value < 1
    ]
    assert answers == sorted(answers, key=ORDER.index)


@settings(max_examples=40)
@given(st.floats(-2, 2), ERRORS, IMAGES, THRESHOLDS)
def test_so_many_images_would_tell_and_one_less_would_not(apart, error, n, threshold):
    area = float(np.clip(threshold + apart * error, 0.5, 1))  # so near that it is mostly unclear
    answer, needed = one(area, error, n, threshold)
    assume(answer == "unclear" and needed is not None)
    assert needed > n
    assert one(area, error * np.sqrt(n / needed), needed, threshold).answer != "unclear"
    if needed - 1 > n:
        few = needed - 1
        assert one(area, error * np.sqrt(n / few), few, threshold).answer == "unclear"


@given(AREAS, ERRORS, st.integers(2, 300), THRESHOLDS)
def test_a_higher_level_never_tells_more(area, error, n, threshold):
    lax, strict = (one(area, error, n, threshold, level=level).answer for level in (0.9, 0.99))
    assert strict in (lax, "unclear")


@given(st.lists(st.tuples(AREAS, ERRORS), min_size=1, max_size=8), IMAGES)
def test_below_is_what_every_unit_says_by_itself(units, n):
    areas, errors = np.array(units).T
    together = decide(areas, errors, n, 0.95).answer == "below"
    assert together == all(one(*unit, n).answer == "below" for unit in units)


def test_units_at_chance_do_not_take_the_proof_from_one_that_reaches():
    """But twenty that are near the threshold make chance likelier."""
    n = 150
    area, error = paired_auroc(*binormal(n, [0.985]))
    more = paired_auroc(*binormal(n, [0.5] * 3000, seed=1))
    assert one(area[0], error[0], n).answer == "reaches"
    assert decide(np.r_[area, more.auroc], np.r_[error, more.standard_error], n, 0.95) == (
        "reaches",
        None,
    )
    level = next(
        level
        for level in np.linspace(0.9, 0.9999, 400)
        if one(area[0], error[0], n, level=level + 0.0003).answer != "reaches"
    )
    near = decide(np.r_[area, [0.93] * 20], np.r_[error, [0.01] * 20], n, 0.95, level)
    assert near.answer == "unclear"


@pytest.mark.parametrize("n", [20, 70, 200])
def test_seldom_errs_at_the_threshold(n):
    """Repetitions of a single unit: each answer is wrong for one of two truths."""
    area, error = paired_auroc(*binormal(n, [0.9] * 400, seed=n))
    answers = [one(*unit, n, threshold=0.9).answer for unit in zip(area, error, strict=True)]
    assert answers.count("reaches") <= 0.08 * 400
    assert answers.count("below") <= 0.08 * 400


def test_the_luck_of_many_units_is_no_sensitivity():
    """Fifty units at 0.88, of which the plain rule finds one at 0.9 nearly always."""
    answers, plain = [], 0
    for seed in range(40):
        area, error = paired_auroc(*binormal(60, [0.88] * 50, seed=seed))
        answers.append(decide(area, error, 60, 0.9).answer)
        plain += area.max() >= 0.9
    assert plain >= 38
    assert answers.count("reaches") <= 1


@pytest.mark.parametrize("threshold", [0.5, 1.01, -1])
def test_rejects_thresholds(threshold):
    with pytest.raises(ValueError, match="threshold"):
        one(0.9, 0.1, 10, threshold)


def test_rejects_levels_and_no_units():
    with pytest.raises(ValueError, match="level"):
        one(0.9, 0.1, 10, level=1)
    with pytest.raises(ValueError, match="at least one unit"):
        decide(np.zeros(0), np.zeros(0), 10, 0.95)
