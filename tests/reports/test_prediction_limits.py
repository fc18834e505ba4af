"""Gates by what the marks do to predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pytest_watermark_guard import Impact, ProbeReport, Scores, judge
from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.probing.scoring import prediction_impact
from pytest_watermark_guard.reports.prediction_limits import PredictionLimits, held_against

NAMES = ("beach", "carton")


def impact(flipped, by_blobs, wrong=0, n=200):
    """The first images flip by the mark, the last by blobs; the first `wrong` were right before."""
    before = np.zeros(n, dtype=int)
    after, blobs = before.copy(), before.copy()
    after[:flipped] = 1
    blobs[n - by_blobs :] = 1
    truth = np.where(np.arange(n) < wrong, 0, -1)
    return prediction_impact(before, after, NAMES, truth, blobs=blobs)


def report(found, d=0.99, n=200):
    scores = Scores("logits", "chinese", np.array([0.5, d]), np.full(2, 0.002), n, NAMES)
    places = {("logits", "chinese"): scores}
    impacts = {} if found is None else {"chinese": found}
    return ProbeReport("net", f"{n} images", n, 17, scores=places, impact=impacts)


@pytest.mark.parametrize(
    ("flipped", "limit", "outcome"),
    [(100, 0.1, "failed"), (10, 0.1, "passed"), (32, 0.1, "inconclusive")],
)
def test_flips_are_judged_with_their_interval_beyond_blobs(flipped, limit, outcome):
    found = impact(flipped, by_blobs=10)
    verdict = judge(report(found), max_flips=limit)
    assert verdict.outcome == outcome  # and not by d, which would fail
    (finding,) = verdict.predictions
    assert finding.value == found.flips_beyond_blobs == pytest.approx((flipped - 10) / 200)
    low, high = finding.interval
    assert low <= finding.value <= high
    assert f"{finding.value:.1%} of the predictions beyond blobs of ink" in verdict.sentence()


def test_the_policy_holds_for_predictions_too():
    found = report(impact(32, by_blobs=10))
    assert judge(found, max_flips=0.1, inconclusive="fail").outcome == "failed"
    assert judge(found, max_flips=0.1, inconclusive="pass").passed


def test_a_drop_of_accuracy_is_judged_in_points():
    found = report(impact(60, by_blobs=0, wrong=100))
    failed = judge(found, max_drop=20)
    assert failed.outcome == "failed"
    assert "chinese marks cost 60.0 points of top-1 accuracy (" in failed.sentence()
    assert judge(found, max_drop=80).outcome == "passed"


def test_one_limit_is_enough_to_fail():
    found = report(impact(100, by_blobs=0, wrong=100))
    assert judge(found, max_flips=0.9, max_drop=5).outcome == "failed"
    assert judge(found, max_flips=0.1, max_drop=99).outcome == "failed"


def test_without_what_a_limit_is_on_it_is_said():
    bare = Impact(0.1, None, None, 0.0)
    for limits, message in [
        (PredictionLimits(max_flips=0.1), "max_flips: net was probed without blobs"),
        (PredictionLimits(max_drop=1), "max_drop: no label is known"),
    ]:
        with pytest.raises(SettingsError, match=message):
            list(held_against(report(bare), limits))


def test_without_logits_there_is_nothing_to_gate():
    verdict = judge(report(None), max_flips=0.1)
    assert verdict.outcome == "not checked"
    assert "it has no logits" in verdict.sentence()


def test_near_duplicates_widen_the_interval():
    before, after = np.zeros(60, dtype=int), np.repeat([1, 0], 30)
    groups = np.repeat(np.arange(6), 10)
    alone = prediction_impact(before, after, NAMES).flip_interval
    together = prediction_impact(before, after, NAMES, groups=groups).flip_interval
    assert alone is not None
    assert together is not None
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_intervals_survive_the_file():
    found = report(impact(32, by_blobs=10, wrong=50))
    again = ProbeReport.from_json(found.to_json())
    assert again.impact == found.impact
    assert judge(replace(again), max_flips=0.1).outcome == "inconclusive"
