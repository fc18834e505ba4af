from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binom, norm

from pytest_watermark_guard.statistics.auroc import auroc
from pytest_watermark_guard.statistics.sequential import SequentialGate

IMAGES = 400


def binormal(areas, seed=0, images=IMAGES, correlation=0.5):
    rng = np.random.default_rng(seed)
    shape = (images, len(areas))
    shared = np.sqrt(correlation) * rng.normal(size=shape)
    baseline, marked = shared + np.sqrt(1 - correlation) * rng.normal(size=(2, *shape))
    return baseline, marked + np.sqrt(2) * norm.ppf(areas)


def gate_on(scores, threshold=0.95, error=0.001, seed=0, exempt=None):
    """Show all images of one layer."""
    gate = SequentialGate(threshold, error, len(scores[0]), seed)
    gate.update({"layer": scores}, None if exempt is None else {"layer": exempt})
    return gate


def with_losers(losers, units, images, seed, reach=1):
    """Units of which as many images, random for each, reverse the score.

    A loser ties with the others, so A = 1 − losers / images; with reach 2 it loses against them.
    """
    lost = np.random.default_rng(seed).random((images, units)).argsort(axis=0) < losers
    return np.where(lost, reach, 0), np.where(lost, 1 - reach, 1)


def test_clear_cases_are_told_early():
    clean = np.linspace(0.2, 0.8, 60)
    found = gate_on(binormal(clean))
    assert found.verdict == "clean"
    assert found.n_images < IMAGES / 3
    for area in (0.001, 0.999):
        found = gate_on(binormal(np.append(clean, area)))
        assert found.verdict == "sensitive"
        assert found.n_images < IMAGES * 0.75


@pytest.mark.parametrize("area", [0.0, 1.0])
def test_no_verdict_before_the_evidence_is_there(area):
    """Were 7 of 270 images reversed, d would be below 0.95, and the others would look alike."""
    scores = np.zeros((1000, 1)) + (1 - area), np.zeros((1000, 1)) + area
    found = gate_on(scores)
    assert found.verdict == "sensitive"
    assert 237 <= found.n_images <= 280


def test_scores_of_decided_units_are_let_go():
    """One unit at the threshold keeps the gate going; the others are clean after some dozens."""
    low, high = (side.astype(np.float32) for side in binormal([0.95] + [0.5] * 999))
    gate = SequentialGate(0.95, 0.001, IMAGES)
    tracemalloc.start()
    for first in range(0, IMAGES, 8):
        part = slice(first, first + 8)
        gate.update({"layer": (low[part], high[part])})
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert gate.undecided == {"layer": 1}
    assert size < (low.nbytes + high.nbytes) / 10
    assert peak < (low.nbytes + high.nbytes) / 2


def test_at_the_threshold_the_full_run_decides():
    found = gate_on(binormal(np.array([0.95])))
    assert found.verdict is None
    assert found.n_images == IMAGES
    assert found.undecided == {"layer": 1}


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 150), max_size=30).map(sorted),
    st.integers(0, 5),
    st.sampled_from([0.6, 0.9, 0.99]),
)
def test_only_the_images_count_not_how_they_are_split(cuts, seed, top):
    baseline, marked = binormal(np.array([0.5, top]), seed, images=150)
    whole = gate_on((baseline, marked), error=0.05, seed=seed)
    gate = SequentialGate(0.95, 0.05, 150, seed)
    for start, stop in zip([0, *cuts], [*cuts, 150], strict=True):
        gate.update({"layer": (baseline[start:stop], marked[start:stop])})
        assert gate.n_images <= stop
    assert gate.verdict == whole.verdict
    assert gate.n_images == whole.n_images
    assert gate.undecided == whole.undecided


def test_layers_and_scenarios_are_one_verdict():
    low, high = binormal(np.append(np.linspace(0.3, 0.7, 9), 0.999))
    parts = {("a", "x"): slice(0, 4), ("a", "y"): slice(4, 9), ("b", "x"): slice(9, 10)}
    scores = {key: (low[:, units], high[:, units]) for key, units in parts.items()}
    gate = SequentialGate(0.95, 0.001, IMAGES)
    gate.update({key: (b[:100], m[:100]) for key, (b, m) in scores.items()})
    assert gate.verdict is None
    assert gate.undecided == {("a", "x"): 0, ("a", "y"): 0, ("b", "x"): 1}
    # The order of the keys is not part of the scores.
    gate.update({key: (scores[key][0][100:], scores[key][1][100:]) for key in reversed(scores)})
    assert gate.verdict == "sensitive"
    assert gate.n_images == gate_on((low, high)).n_images


def test_only_the_order_of_scores_counts():
    scores = binormal(np.array([0.3, 0.9, 0.6]))
    ranks = np.unique(np.stack(scores), return_inverse=True)[1].reshape(2, IMAGES, 3)
    one, other = gate_on(scores), gate_on((ranks[0], ranks[1].astype(np.float32)))
    assert (one.verdict, one.n_images) == (other.verdict, other.n_images)
    mirrored = gate_on((-scores[0], -scores[1]))
    assert (one.verdict, one.n_images) == (mirrored.verdict, mirrored.n_images)


def test_exempt_units_are_not_tested():
    scores = binormal(np.array([0.999, 0.5, 0.001]))
    assert gate_on(scores).verdict == "sensitive"
    assert gate_on(scores, exempt=np.array([True, False, False])).verdict == "sensitive"
    found = gate_on(scores, exempt=np.array([True, False, True]))
    assert found.verdict == "clean"
    assert found.n_images == gate_on((scores[0][:, 1:2], scores[1][:, 1:2])).n_images


def test_nothing_to_test_is_clean_at_once():
    gate = SequentialGate(0.95, 0.001, IMAGES)
    assert gate.verdict is None
    assert gate.undecided == {}
    nothing = np.empty((0, 3))
    gate.update({"layer": (nothing, nothing)}, {"layer": np.ones(3, dtype=bool)})
    assert (gate.verdict, gate.n_images) == ("clean", 0)


def test_constant_units_are_clean():
    constant = np.full((IMAGES, 5), 3.0, dtype=np.float32)
    assert gate_on((constant, constant)).verdict == "clean"


def test_threshold_one():
    """One image may always make the difference: only the last can tell that there is none."""
    zeros, ones = np.zeros((50, 1)), np.ones((50, 1))
    assert gate_on((zeros, ones), threshold=1).verdict is None
    assert gate_on((ones, zeros), threshold=1).verdict is None
    found = gate_on(binormal(np.array([0.97, 0.1])), threshold=1)
    assert found.verdict == "clean"
    assert found.n_images < IMAGES / 2


def test_a_verdict_is_final():
    low, high = binormal(np.array([0.5]))
    gate = SequentialGate(0.95, 0.001, 2 * IMAGES)
    gate.update({"layer": (low, high)})
    assert gate.verdict == "clean"
    needed = gate.n_images
    gate.update({"layer": (low - 9, high)})
    assert (gate.verdict, gate.n_images) == ("clean", needed)


def most_errors(error, runs):
    """Return what a rate of `error` exceeds once in a million."""
    return binom.ppf(1 - 1e-6, runs, error)


@pytest.mark.parametrize("threshold", [0.95, 0.6])
def test_a_unit_at_the_threshold_is_seldom_called_clean(threshold):
    """Every unit is a run of its own: the gate decides each by itself."""
    error, images, units, wrong = 0.05, 100, 1000, 0
    for seed in range(10):
        losers = round((1 - threshold) * images)
        scores = with_losers(losers, units, images, seed)
        assert (auroc(*scores) == threshold).all()
        wrong += units - gate_on(scores, threshold, error, seed).undecided["layer"]
    assert 0 < wrong <= error * 10 * units


def test_units_below_the_threshold_are_seldom_called_sensitive():
    """Losers lose against everyone: the worst case, where few of them hide for longest."""
    error, images, runs = 0.05, 60, 200
    threshold = (58 / 60) ** 2 + 1e-9
    verdicts = []
    for seed in range(runs):
        scores = with_losers(2, 3, images, seed, reach=2)
        assert (auroc(*scores) < threshold).all()
        verdicts.append(gate_on(scores, threshold, error, seed).verdict)
    assert 0 < verdicts.count("sensitive") <= most_errors(error, runs)


def naive_wealth(baseline, marked, threshold, same_image):
    """Bet on the share of wins within each group of 4 images; return the largest wealth."""
    wealth = largest = 1.0
    counted = np.ones((4, 4), dtype=bool) if same_image else ~np.eye(4, dtype=bool)
    for start in range(0, len(baseline), 4):
        rows = slice(start, start + 4)
        wins = marked[rows] > baseline[rows].T
        wealth *= 1 + (wins[counted].mean() - threshold) / threshold
        largest = max(largest, wealth)
    return largest


def test_an_image_against_itself_is_no_evidence():
    """The mark always raises an image's own score; that says nothing of two different images."""
    error, images, runs = 0.05, 200, 40
    values = norm.ppf((np.arange(images) + 0.5) / images)
    threshold = auroc(values, values + 0.7)[0] + 0.001
    assert 0.68 < threshold < 0.7
    wrong = np.zeros(3)
    for seed in range(runs):
        baseline = np.random.default_rng(seed).permutation(values)[:, None]
        marked = baseline + 0.7
        wrong += (
            gate_on((baseline, marked), threshold, error, seed).verdict == "sensitive",
            naive_wealth(baseline, marked, threshold, same_image=False) >= 1 / error,
            naive_wealth(baseline, marked, threshold, same_image=True) >= 1 / error,
        )
    ours, different, same = wrong
    assert max(ours, different) <= most_errors(error, runs) < same


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, 0.01, 10), "threshold"),
        ((1.01, 0.01, 10), "threshold"),
        ((float("nan"), 0.01, 10), "threshold"),
        ((0.9, 0, 10), "error"),
        ((0.9, 1, 10), "error"),
        ((0.9, 0.01, 0), "images"),
    ],
)
def test_rejects_settings(values, message):
    with pytest.raises(ValueError, match=f"{message} must be"):
        SequentialGate(*values)


ROWS = np.zeros((4, 2))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "at least one layer"),
        ({"b": (ROWS, ROWS)}, r"expected scores of \['a', 'b'\], got \['b'\]"),
        ({"a": (ROWS, ROWS), "b": (ROWS[:3], ROWS[:3])}, "b: expected 4 rows as elsewhere, got 3"),
        ({"a": (ROWS, ROWS[:3]), "b": (ROWS, ROWS)}, r"a: expected two arrays.*\(3, 2\)"),
        ({"a": (ROWS[0], ROWS[0]), "b": (ROWS, ROWS)}, "a: expected two arrays"),
        ({"a": (ROWS, ROWS), "b": (ROWS[:, :1], ROWS[:, :1])}, "b: expected 2 units, got 1"),
        ({"a": (ROWS, ROWS), "b": (ROWS, ROWS + np.nan)}, "b: scores must be finite"),
        ({"a": (ROWS - np.inf, ROWS), "b": (ROWS, ROWS)}, "a: scores must be finite"),
        ({"a": (ROWS, ROWS), "b": (ROWS, ROWS)}, "expected 6 images in all, got 8"),
    ],
)
def test_rejects_scores_and_takes_nothing(scores, message):
    gate = SequentialGate(0.9, 0.01, 6)
    gate.update({"a": (ROWS, ROWS), "b": (ROWS, ROWS)})
    with pytest.raises(ValueError, match=message):
        gate.update(scores)
    gate.update({"a": (ROWS[:2], ROWS[:2]), "b": (ROWS[:2], ROWS[:2])})


def test_rejects_exemptions_of_other_units():
    with pytest.raises(ValueError, match=r"layer: 2 units, but exempt has shape \(3,\)"):
        gate_on((ROWS, ROWS), exempt=np.zeros(3, dtype=bool))
