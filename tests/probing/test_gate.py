from __future__ import annotations

import numpy as np
import pytest

from pytest_watermark_guard import ProbeReport, Scores, judge
from pytest_watermark_guard.errors import SettingsError


def report(auroc, names=None, **fields):
    """A report with one layer's scores for each entry of `auroc`."""
    scores = {}
    for (layer, scenario), areas in auroc.items():
        areas = np.array(areas, dtype=float)
        scores[layer, scenario] = Scores(
            layer,
            scenario,
            areas,
            np.full(len(areas), 0.002),
            256,
            tuple((names or {}).get(layer) or map(str, range(len(areas)))),
        )
    given = {"model": "net", "baseline": "256 images of photos/", "n_images": 256, "seed": 17}
    given["preprocessing"] = "ImageNet"
    return ProbeReport(
        **{**given, "device": "cpu", "precision": "float32", **fields}, scores=scores
    )


TWO_LAYERS = {
    ("logits", "chinese"): [0.5, 0.97, 0.2],
    ("features", "chinese"): [0.96, 0.03, 0.6, 0.5],
    ("logits", "latin"): [0.5, 0.95, 0.6],
    ("features", "latin"): [0.5, 0.5, 0.6, 0.5],
}
NAMES = {"logits": ["beach", "carton", "dog"]}


def test_a_unit_that_reaches_the_threshold_fails():
    verdict = judge(report(TWO_LAYERS, NAMES), 0.95)
    assert not verdict.passed
    assert [(u.layer, u.scenario, u.name) for u in verdict.failing] == [
        ("logits", "chinese", "carton"),
        ("features", "chinese", "1"),
        ("features", "chinese", "0"),
        ("logits", "latin", "carton"),
    ]
    assert judge(report(TWO_LAYERS), 0.98).passed


def test_silenced_units_count_as_much():
    (unit,) = judge(report({("features", "chinese"): [0.02, 0.5]}), 0.95).failing
    assert (unit.fires, unit.auroc, unit.differentiability) == (False, 0.02, 0.98)


@pytest.mark.parametrize(
    ("allow", "left"),
    [
        ({"carton": "r"}, {"0", "1"}),
        ({"logits:carton": "r"}, {"0", "1"}),
        ({"logits:1": "r", "features:0": "r"}, {"1"}),
        ({"features:carton": "r"}, {"carton", "0", "1"}),
        ({"carton": "r", "features:0": "r", "features:1": "r"}, set()),
    ],
)
def test_known_units_are_allowed(allow, left):
    verdict = judge(report(TWO_LAYERS, NAMES), 0.95, allow)
    assert {unit.name for unit in verdict.failing} == left
    assert verdict.passed == (not left)


def test_a_number_that_is_a_class_name_is_that_class():
    digits = report({("logits", "latin"): [0.99, 0.98]}, {"logits": ["1", "0"]})
    (left,) = judge(digits, 0.95, {"logits:1": "r"}).failing
    assert (left.name, left.index) == ("0", 1)


@pytest.mark.parametrize("allow", [{"937": "r"}, {"carton": " "}])
def test_entries_that_say_too_little(allow):
    with pytest.raises(SettingsError, match=r"of which layer|needs a reason"):
        judge(report(TWO_LAYERS), 0.95, allow)


def test_class_names_with_colons_can_be_allowed():
    named = report({("logits", "latin"): [0.99]}, {"logits": ["fruit: kiwi"]})
    assert judge(named, 0.95, {"fruit: kiwi": "r"}).passed
    assert judge(named, 0.95, {"logits:fruit: kiwi": "r"}).passed


def test_entries_that_nothing_needs_any_more_are_told():
    verdict = judge(report(TWO_LAYERS, NAMES), 0.95, {"beach": "old", "carton": "known"})
    assert verdict.stale == ("beach",)
    assert "no longer needed in allow: beach" in verdict.story()
    assert "allowed: logits carton [1], chinese, d 0.970: known" in verdict.story()


@pytest.mark.parametrize("threshold", [0.5, 0, 1.1, -1, "0.9"])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(SettingsError, match=r"\(0.5, 1\]"):
        judge(report(TWO_LAYERS), threshold)


STORY = """\
net is watermark-sensitive: 1 of 3 logits and 2 of 4 features react to chinese and latin marks \
(d >= 0.95).

layer     unit        scenario  reaction  A      95 % interval  d
logits    carton [1]  chinese   fires on  0.970  0.966-0.974    0.970
features  unit 1      chinese   silenced  0.030  0.026-0.034    0.970
features  unit 0      chinese   fires on  0.960  0.956-0.964    0.960
logits    carton [1]  latin     fires on  0.950  0.946-0.954    0.950

Probed: 256 images of photos/, seed 17, cpu in float32.
Preprocessing: ImageNet.
A: how often a marked image scores above a clean one. d = max(A, 1 - A).
Note: preprocessing was assumed.
What to do: look for such marks in the training images of these classes,
and train again without them; or accept a known unit, with a reason:
  allow={'logits:carton': 'why'}, --wm-allow='logits:carton=why' or wm_allow;
or put all of them on record as they are: --wm-update-known"""


def test_the_story_of_a_failed_gate():
    told = judge(report(TWO_LAYERS, NAMES, notes=("preprocessing was assumed",)), 0.95).story()
    assert told == STORY


def test_what_a_story_says_of_the_probe_fits_a_terminal():
    notes = ("class names are assumed " * 5 + "to be ImageNet's",)
    told = judge(report(TWO_LAYERS, NAMES, notes=notes), 0.95).story().splitlines()
    (first,) = [index for index, line in enumerate(told) if line.startswith("Note: ")]
    assert told[first + 1].startswith("  ")
    assert max(map(len, told[1:])) <= 80
    assert f"Note: {notes[0]}." in " ".join(" ".join(told).split())


def test_the_story_fits_on_a_screen():
    many = report({("features", "chinese"): np.linspace(0.95, 1, 2000)})
    story = judge(many, 0.95).story()
    assert "2,000 of 2,000 features" in story
    assert "... and 1,990 more" in story
    assert len(story.splitlines()) <= 24
    stale = judge(many, 0.95, {f"class {i}": "r" for i in range(100)}).story()
    assert "class 9 and 90 more" in stale
    assert len(stale.splitlines()) <= 25
    assert max(map(len, story.splitlines()[1:])) <= 88


def test_wide_letters_stay_in_line():
    named = report({("logits", "latin"): [0.99, 0.98]}, {"logits": ["的的", "abcd"]})
    rows = judge(named, 0.95).story().splitlines()[3:5]
    assert rows[0].index("latin") == rows[1].index("latin") - 2


def test_names_cannot_break_the_story():
    evil = report({("logits", "latin"): [0.99]}, {"logits": ["a\nPASSED \x1b[31m[red]" + "x" * 99]})
    story = judge(evil, 0.95).story()
    assert "\x1b" not in story
    assert "a\\nPASSED \\x1b[31m" in story
    assert len(story.splitlines()) == len(STORY.splitlines()) - 4
