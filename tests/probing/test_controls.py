"""Scrambled marks tell whether a unit reacts to text or to anything printed over the photo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.reports.controls import control_sentences
from pytest_watermark_guard.reports.terminal import render_reports

# All that is red is ink; the rest tells the photos apart.
PHOTOS = np.random.default_rng(0).integers(0, 60, (64, 224, 224, 3), dtype=np.uint8)
PHOTOS[..., 0] = 0


class Units(nn.Module):
    """Unit 0 sees how much is printed; unit 1 whether there is a long stroke."""

    preprocessing = wm.Preprocessing(size=(224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(2))

    def forward(self, x):
        ink = x[:, :1]
        strokes = nn.functional.avg_pool2d(ink, (1, 20), stride=1)
        # In whole steps of 8 bits, so that equal ink gives equal sums.
        printed = (ink.double() * 255).round().sum((1, 2, 3)).float()
        return self.head(torch.stack([printed, strokes.amax((1, 2, 3))], 1))


SCENARIO = wm.Scenario("bars", "一 上 大", font="song", length=5)
BOTH = ("strokes", "blobs")


@pytest.fixture(scope="module")
def report():
    return wm.probe(Units(), PHOTOS, [SCENARIO], control=True, cache=False)


def test_ink_is_not_text_and_strokes_are(report):
    scores, against = report["logits", "bars"], report.controls["logits", "bars"]
    assert scores.auroc.min() > 0.95  # both react to the mark
    assert against.auroc[0] == 0.5  # unit 0 to its ink: the control has just as much
    assert against.auroc[1] > 0.9  # unit 1 to its strokes


def test_controls_alone_are_scored_against_clean_images(report):
    alone = report.controls_alone
    assert set(alone) == {(layer, "bars", kind) for layer in report.layers for kind in BOTH}
    for kind in BOTH:  # unit 0 sees as much ink as in the mark
        np.testing.assert_array_equal(
            alone["logits", "bars", kind].auroc[0], report["logits", "bars"].auroc[0]
        )
        assert alone["logits", "bars", kind].auroc[1] > 0.9  # there was nothing but black
        assert alone["logits", "bars", kind].n_images == len(PHOTOS)


@pytest.mark.parametrize("kind", BOTH)
def test_one_of_the_controls(report, kind):
    one = wm.probe(Units(), PHOTOS, [SCENARIO], control=kind, cache=False)
    assert {found for *_, found in one.controls_alone} == {kind}
    for key, scores in one.controls_alone.items():
        np.testing.assert_array_equal(scores.auroc, report.controls_alone[key].auroc)
    assert bool(one.controls) == (kind == "strokes")
    assert (one.impact["bars"].control_flip_rate is None) == (kind == "blobs")
    table = render_reports([(one, ())], 0.95, width=120)
    assert ("A blobs" in table) == (kind == "blobs")
    assert ("A scrambled" in table) == (kind == "strokes")


@pytest.mark.parametrize("wrong", ["both", 1, ("strokes",)])
def test_other_controls_are_refused(wrong):
    with pytest.raises(SettingsError, match="control must be True, False, strokes or"):
        wm.probe(Units(), PHOTOS, [SCENARIO], control=wrong)


def test_sentences_follow_from_the_numbers():
    def scores(layer, areas, error=0.01):
        return wm.Scores(layer, "s", np.array(areas), np.full(2, error), 50, ("a", "b"))

    alone = {
        ("logits", "s", "strokes"): scores("logits", [0.1, 0.8]),
        ("logits", "s", "blobs"): scores("logits", [0.2, 0.45]),
    }
    found = wm.ProbeReport(
        "net", "photos", 50, 17, {("logits", "s"): scores("logits", [0.6, 0.9])},
        controls_alone=alone,
    )  # fmt: skip
    assert list(control_sentences(found)) == [
        "s: logits b [1] has A = 0.900 by the mark, 0.800 by its strokes, scrambled and 0.450 by "
        "blobs of as much ink; so scrambled strokes alone do 75% and blobs alone do 0% of what the "
        "mark does to it (A - 0.5)."
    ]
    silenced = replace(found, scores={("logits", "s"): scores("logits", [0.0, 0.4])})
    assert "so scrambled strokes alone do 80% and blobs alone do 60%" in (
        next(control_sentences(silenced))
    )
    nothing = replace(found, scores={("logits", "s"): scores("logits", [0.51, 0.5], error=0.1)})
    assert next(control_sentences(nothing)).endswith("does not react to the mark beyond chance.")
    assert list(control_sentences(replace(found, controls_alone={}))) == []


def test_the_rest_of_the_report_is_the_same(report):
    without = wm.probe(Units(), PHOTOS, [SCENARIO], cache=False)
    assert without.controls == without.controls_alone == {}
    assert without.impact["bars"].control_flip_rate is None
    assert without.impact["bars"].flips_beyond_control is None
    for scores in without:
        found = report[scores.layer, scores.scenario]
        np.testing.assert_array_equal(found.auroc, scores.auroc)


def test_flips_beyond_the_control(report):
    impact = report.impact["bars"]
    assert 0 <= impact.control_flip_rate <= 1
    assert impact.flips_beyond_control == impact.flip_rate - impact.control_flip_rate


def test_it_is_shown(report):
    table = render_reports([(report, ())], 0.95, width=120)
    assert "A/control" in table
    narrow = render_reports([(report, ())], 0.95, width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "control" in table.split("Predictions under the mark")[1].split("class")[0]
    story = wm.judge(report).story()
    header, worst = story.splitlines()[2:4]
    assert header.endswith("A/control  A scrambled  A blobs")
    (unit,) = wm.judge(report).failing[:1]
    key = unit.layer, unit.scenario
    areas = [report.controls[key], *(report.controls_alone[(*key, kind)] for kind in BOTH)]
    assert worst.split()[-3:] == [f"{scores.auroc[unit.index]:.3f}" for scores in areas]
    assert "A/control: how often a marked image scores above one with its strokes" in story
    assert "A scrambled: how often" in table
    assert "of what the mark does to it" in " ".join(table.split())


def test_the_round_trip(report):
    again = wm.ProbeReport.from_json(report.to_json())
    for key, scores in report.controls.items():
        np.testing.assert_array_equal(again.controls[key].auroc, scores.auroc)
    assert set(again.controls_alone) == set(report.controls_alone)
    for key, scores in report.controls_alone.items():
        np.testing.assert_array_equal(again.controls_alone[key].auroc, scores.auroc)
    assert again.impact == report.impact


def test_marked_copies_have_no_control(tmp_path):
    from PIL import Image

    for name in ("plain", "marked"):
        (tmp_path / name).mkdir()
        for index, pixels in enumerate(PHOTOS[:4]):
            pixels = pixels.copy()
            if name == "marked":
                pixels[: len(pixels) // 2] //= 2
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    scenarios = [wm.PairedFolder("dark", tmp_path / "marked"), SCENARIO]
    found = wm.probe(Units(), tmp_path / "plain", scenarios, control=True, cache=False)
    assert {scenario for _, scenario in found.controls} == {"bars"}
    assert {scenario for _, scenario, _ in found.controls_alone} == {"bars"}
    assert found.impact["dark"].control_flip_rate is None
