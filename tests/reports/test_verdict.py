"""What becomes of a gate, and in which words."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from pytest_watermark_guard import ProbeReport, Scores, judge
from pytest_watermark_guard.errors import AssumptionWarning, SettingsError, StrongReactionWarning
from pytest_watermark_guard.probing.cautions import warn_of
from pytest_watermark_guard.reports.early_stop import EarlyStop


def report(areas, n_images=256, ends=None, error=0.01, **fields):
    names = ("beach", "monitor", "safe")[: len(areas)]
    areas = np.array(areas, dtype=float)
    scores = Scores(
        "logits", "chinese", areas, np.full(len(areas), error), n_images, names, largest=ends
    )
    given = {"model": "net", "baseline": f"{n_images} images", "n_images": n_images, "seed": 17}
    return ProbeReport(**{**given, **fields}, scores={("logits", "chinese"): scores})


@pytest.mark.parametrize(
    ("found", "outcome", "sentence"),
    [
        (
            report([0.5, 0.99, 0.6]),
            "failed",
            "net is watermark-sensitive: 1 of 3 logits reacts to chinese marks (d >= 0.95).",
        ),
        (
            report([0.5, 0.87, 0.15]),
            "warned",
            "net passes: nothing reaches 0.95, but 2 of 3 logits react strongly (d >= 0.8); "
            "strongest: logits monitor [1], chinese, d 0.870.",
        ),
        (
            report([0.5, 0.75, 0.6]),
            "passed",
            "net passes: nothing reaches 0.95; strongest: logits monitor [1], chinese, d 0.750.",
        ),
        (
            report([0.5, 0.62, 0.6], ends=(0.58, 0.66)),
            "passed",
            "net is not watermark-sensitive: nothing reaches 0.95; strongest: logits monitor [1], "
            "chinese, d 0.620.",
        ),
        (  # a d below 0.7 is no clean bill where it may be higher by chance
            report([0.5, 0.62, 0.6], ends=(0.58, 0.71)),
            "passed",
            "net passes: nothing reaches 0.95; strongest: logits monitor [1], chinese, d 0.620.",
        ),
    ],
)
def test_outcomes(found, outcome, sentence):
    verdict = judge(found)
    assert (verdict.outcome, verdict.sentence()) == (outcome, sentence)
    assert verdict.passed == (outcome in ("warned", "passed"))


@pytest.mark.parametrize("areas", [[0.5, 0.99, 0.6], [0.5, 0.93, 0.6]])
@pytest.mark.parametrize(
    ("policy", "outcome"), [("error", "inconclusive"), ("fail", "failed"), ("pass", None)]
)
def test_too_few_images_tell_nothing(areas, policy, outcome):
    verdict = judge(report(areas, n_images=12, error=0.05), inconclusive=policy)
    if outcome is None:
        assert verdict.passed
    else:
        assert verdict.outcome == outcome
    assert "is inconclusive" in verdict.sentence() or policy == "pass"
    assert "12 images cannot tell whether a unit reaches d = 0.95" in verdict.sentence()
    told = "1 of 3 logits reaches it in them, which may be chance" in verdict.sentence()
    assert told == (max(areas) >= 0.95)
    assert verdict.conclusion.images_needed is None or verdict.conclusion.images_needed > 12


def test_an_early_verdict_stands_on_its_own_bets():
    early = EarlyStop(0.95, 0.001, "clean", 998)
    found = report([0.5, 0.93, 0.6], n_images=24, error=0.04)
    assert judge(found).outcome == "inconclusive"
    assert judge(replace(found, early_stop=early)).outcome == "warned"
    # ... for the threshold that it was made for.
    assert judge(replace(found, early_stop=early), 0.92).outcome == "inconclusive"


def test_strict_lets_no_strong_reaction_pass():
    verdict = judge(report([0.5, 0.87, 0.6]), strict=True)
    assert verdict.outcome == "failed"
    assert verdict.sentence() == (
        "net reacts strongly to watermarks: 1 of 3 logits reacts to chinese marks, and a strict "
        "gate fails by strong reactions (d >= 0.8)."
    )
    assert "monitor [1]" in verdict.story()
    assert "--wm-allow=" in verdict.story()


def test_allowed_units_are_no_strong_reactions():
    verdict = judge(report([0.5, 0.87, 0.6]), allow={"monitor": "screens are often photographed"})
    assert (verdict.outcome, verdict.stale) == ("passed", ())
    assert "strongest: logits safe [2]" in verdict.sentence()


def test_a_warning_level_above_the_threshold_says_nothing():
    assert judge(report([0.5, 0.75, 0.6]), 0.9, warn=0.95).outcome == "passed"
    with pytest.raises(SettingsError, match=r"warn must be a number in \(0.5, 1\], got 0.4"):
        judge(report([0.5, 0.75, 0.6]), warn=0.4)


def test_what_a_pass_warns_of():
    found = report([0.5, 0.87, 0.6], assumptions=("preprocessing is assumed",))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of(judge(found), stacklevel=1)
        warn_of(judge(report([0.5, 0.75, 0.6])), stacklevel=1)
    assert [(w.category, str(w.message)) for w in caught] == [
        (StrongReactionWarning, judge(found).sentence()),
        (AssumptionWarning, "net: preprocessing is assumed"),
    ]
