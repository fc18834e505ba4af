"""How far another way to run a model moves A: held against A itself, on many inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from pytest_watermark_guard.models.running.agreement import (
    LARGEST,
    USUAL,
    UnitShifts,
    estimated_shifts,
    summarised,
)
from pytest_watermark_guard.statistics.auroc import auroc

IMAGES, STREAMS = 7, 9  # as many as a CPU is given at once


def rows(images, rng, units=400, mark=1.2, shape=None):
    """Return activations [streams * images, units] of photos, the first time without a mark."""
    photos = rng.normal(size=(images, units))
    marks = np.r_[0.0, np.full(STREAMS - 1, mark)][:, None, None]
    exact = photos + marks + 0.7 * rng.normal(size=(STREAMS, images, units))
    return (exact if shape is None else shape(exact)).reshape(-1, units)


def estimate(before, after):
    return summarised([estimated_shifts({"a": before}, {"a": after}, STREAMS)])


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2, 0.3, 0.6])
def test_noise_moves_a_about_as_far_as_is_estimated(noise):
    rng = np.random.default_rng(1)
    z = np.linspace(-6, 6, 10_001)
    moved = np.abs(stats.norm.cdf(z) - stats.norm.cdf(z / np.sqrt(1 + noise**2))).max()
    before = rows(IMAGES, rng)
    after = before + noise * before.std(axis=0) * rng.normal(size=before.shape)
    by_unit = [estimate(before[:, [u]], after[:, [u]]).largest for u in range(before.shape[1])]
    assert np.median(by_unit) == pytest.approx(moved, rel=0.25)


def test_batches_together_tell_what_one_leaves_in_doubt():
    rng = np.random.default_rng(0)

    def shifts(noise):
        before = rows(IMAGES, rng, units=1500)
        after = before + noise * before.std(axis=0) * rng.normal(size=before.shape)
        return estimated_shifts({"a": before}, {"a": after}, STREAMS)

    little, more = ([shifts(noise) for _ in range(3)] for noise in (0.15, 0.3))  # by 0.003, 0.011
    assert any(summarised([batch]).is_doubtful for batch in little)
    assert summarised(little).agrees
    assert not summarised(more).agrees


def test_batches_together_tell_a_drift_from_chance():
    def batch(drift, error):
        return UnitShifts(np.zeros(40), np.full(40, drift), np.full(40, error))

    assert summarised([batch(0.01, 0.004)]).largest == 0
    assert summarised(3 * [batch(0.01, 0.004)]).largest == pytest.approx(0.01 - 0.016 / 3**0.5)
    assert summarised([batch(0.03, 0.004)]).largest == pytest.approx(0.03 - 0.016)
    by_chance = [batch(0.02, 0.004), batch(-0.01, 0.004), batch(0.0, 0.004)]
    assert summarised(by_chance).largest == 0


def test_what_agrees_hardly_moves_a():
    """On 998 photos, where chance adds less than a lower precision may."""
    rng = np.random.default_rng(0)
    few, many = rows(IMAGES, rng), rows(998, rng)
    scale = 0.1 * few.std(axis=0)  # as much as the worst unit of EfficientNet-Lite0 in bfloat16
    assert estimate(few, few + scale * rng.normal(size=few.shape)).agrees
    rough = many + scale * rng.normal(size=many.shape)
    off = np.abs(auroc(many[:998], many[998:1996]) - auroc(rough[:998], rough[998:1996]))
    assert np.quantile(off, 0.95) <= USUAL
    assert off.max() <= LARGEST


def test_a_drift_of_marked_inputs_alone_is_seen():
    rng = np.random.default_rng(2)
    before = rows(40, rng, units=50)
    after = before.copy()
    after[40:] += 0.3
    assert not estimate(before, after).agrees
    assert estimate(before, before + 0.3).largest == 0  # all alike: no order changes


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: np.maximum(x - 2.5, 0),  # hardly ever fires
        lambda x: 1e-12 * np.maximum(x - 2.5, 0),
        lambda x: 0 * x + 3,  # dead
        lambda x: 3e8 + x,  # differences are rounding of float32
    ],
    ids=["rare", "tiny", "dead", "rounding"],
)
def test_units_that_hardly_change_are_judged_by_what_becomes_of_a(shape):
    rng = np.random.default_rng(3)
    before = rows(IMAGES, rng, shape=shape).astype(np.float32)
    bits = (before.view(np.uint32) + 0x8000) & 0xFFFF0000
    assert estimate(before, before.astype(np.float64)).largest == 0
    # The last is nothing but rounding in both; of the others bfloat16 keeps the order.
    assert estimate(before, bits.astype(np.uint32).view(np.float32)).agrees


def test_a_unit_that_never_changes_must_not_start_to():
    rng = np.random.default_rng(4)
    before = rows(IMAGES, rng, units=3)
    before[:, 1] = 5
    after = before.copy()
    after[:, 1] += 0.01 * rng.normal(size=len(after))
    assert estimate(before, after).largest > 0.2


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_never_agrees(wrong):
    rng = np.random.default_rng(5)
    before = rows(IMAGES, rng, units=3)
    after = before.copy()
    after[2, 1] = wrong
    assert not estimate(before, after).agrees
    assert not estimate(after, before).agrees


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from([1, 2, 5]))
def test_an_increasing_function_moves_no_a(seed, images, streams):
    rng = np.random.default_rng(seed)
    before = np.round(rng.normal(size=(images * streams, 4)), 1)
    shift = summarised([estimated_shifts({"a": before}, {"a": np.exp(before)}, streams)])
    assert shift == (0, 0)
