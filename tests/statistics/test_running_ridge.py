"""Ridge regression in parts, against scikit-learn's of the whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st
from sklearn.linear_model import Ridge

from pytest_watermark_guard.statistics.running_ridge import RunningRidge


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 4), st.integers(1, 5))
def test_it_is_scikit_learns(seed, units, targets, parts):
    rng = np.random.default_rng(seed)
    ridge, shifts = RunningRidge(), rng.normal(size=(2, units))
    x = rng.normal(size=(parts, 6, units)) + 100 * rng.normal(size=units)
    y = x @ rng.normal(size=(units, targets)) + rng.normal(size=(parts, 6, targets))
    for part in range(parts):
        ridge.add(x[part], y[part])
    x, y = x.reshape(-1, units), y.reshape(-1, targets)
    oracle = Ridge(alpha=0.1 * len(x) * x.var(axis=0).mean()).fit(x, y)
    slopes = shifts @ np.reshape(oracle.coef_, (targets, units)).T
    np.testing.assert_allclose(ridge.slopes(shifts), slopes, rtol=1e-7, atol=1e-7)


def test_targets_that_come_later_were_zero_before():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 9, 4)), rng.normal(size=(2, 9, 3))
    y[0, :, 2] = 0
    whole, growing = RunningRidge(), RunningRidge()
    for part in range(2):
        whole.add(x[part], y[part])
    growing.add(x[0], y[0, :, :2])
    growing.add(x[1], y[1])
    np.testing.assert_allclose(growing.slopes(x[0]), whole.slopes(x[0]), rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_a_part_can_be_left_out(seed, out):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(3, 9, 4)), rng.normal(size=(3, 9, 2))
    everything, rest = RunningRidge(), RunningRidge()
    for part in range(3):
        everything.add(x[part], y[part])
        if part != out:
            rest.add(x[part], y[part])
    before = everything.slopes(x[0])
    found = everything.without(x[out], y[out]).slopes(x[0])
    np.testing.assert_allclose(found, rest.slopes(x[0]), rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(everything.slopes(x[0]), before)


def test_nothing_is_known():
    ridge = RunningRidge()
    assert ridge.slopes(np.ones((3, 4))).shape == (3, 0)
    ridge.add(np.ones((5, 4)), np.ones((5, 2)))
    assert ridge.slopes(np.ones((1, 4))).tolist() == [[0, 0]]
