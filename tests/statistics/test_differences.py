from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.statistics.differences import guarded_error, holm, two_sided_p

P_VALUES = arrays(float, st.integers(1, 12), elements=st.floats(0, 1) | st.just(np.nan))


def by_the_book(p_values, level):
    """Holm's procedure as he gives it: from the smallest on, until one is too large."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not np.isnan(p))
    rejected = set()
    for step, (p, index) in enumerate(known):
        if p * (len(known) - step) > level:
            break
        rejected.add(index)
    return rejected


@given(P_VALUES, st.floats(0, 0.999))
def test_adjusted_values_reject_what_the_procedure_rejects(p_values, level):
    adjusted = holm(p_values)
    assert {*np.flatnonzero(adjusted <= level)} == by_the_book(p_values, level)
    assert (np.isnan(adjusted) == np.isnan(p_values)).all()


def test_p_values_are_those_of_a_table():
    z = np.array([0.0, 1.959964, -2.575829, 4.0, np.nan])
    expected = [1.0, 0.05, 0.01, 6.334e-5, np.nan]
    np.testing.assert_allclose(two_sided_p(z * 0.3, np.full(5, 0.3)), expected, rtol=1e-3)


def test_dead_units_have_not_changed():
    found = two_sided_p(np.array([0.0, 0.1, 0.0]), np.array([0.0, 0.0, np.nan]))
    np.testing.assert_array_equal(found, [1, 0, np.nan])


def difference_p(one, other, images):
    errors = [guarded_error(np.array([a]), np.array([e]), images) for a, e in (one, other)]
    return two_sided_p(np.array([other[0] - one[0]]), np.hypot(*errors))


@pytest.mark.parametrize("perfect", [0.0, 1.0])
def test_a_perfect_unit_is_not_known_without_error(perfect):
    # Of 100 images 5 may be missed by chance, where a unit of 998 that misses 5 % is another one.
    near = abs(perfect - 0.05)
    assert difference_p((perfect, 0), (near, 0.02), 100) > 0.1
    assert difference_p((perfect, 0), (near, 0.006), 998) < 1e-10
    assert np.isnan(difference_p((perfect, np.nan), (near, 0.01), 100))


@pytest.mark.parametrize("images", [15, 30, 200])
def test_units_that_react_alike_are_hardly_ever_named(images):
    """An oracle: two samples of the same units, on other images, a few hundred times over."""
    rng = np.random.default_rng(0)
    shift = np.linspace(0, 4, 60)  # from no reaction to a nearly perfect one
    named, rounds = 0, 200

    def measure():
        own = rng.normal(size=(images, 1))  # shared by an image's copies, and by units
        low = own + rng.normal(size=(images, 60))
        return paired_auroc(low, own + shift + rng.normal(size=(images, 60)))

    for _ in range(rounds):
        one, two = measure(), measure()
        error = np.hypot(*(guarded_error(*measured, images) for measured in (one, two)))
        named += bool((holm(two_sided_p(two.auroc - one.auroc, error)) <= 0.05).any())
    assert named / rounds <= 0.05 + 2 * (0.05 * 0.95 / rounds) ** 0.5
