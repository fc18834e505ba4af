"""Scrambled marks tell whether a unit reacts to text or to anything printed over the photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.reports.terminal import render_reports

PHOTOS = np.zeros((24, 224, 224, 3), dtype=np.uint8)  # all that is bright is ink


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


@pytest.fixture(scope="module")
def report():
    return wm.probe(Units(), PHOTOS, [SCENARIO], control=True, cache=False)


def test_ink_is_not_text_and_strokes_are(report):
    scores, against = report["logits", "bars"], report.controls["logits", "bars"]
    assert scores.auroc.min() > 0.95  # both react to the mark
    assert against.auroc[0] == 0.5  # unit 0 to its ink: the control has just as much
    assert against.auroc[1] > 0.9  # unit 1 to its strokes


def test_the_rest_of_the_report_is_the_same(report):
    without = wm.probe(Units(), PHOTOS, [SCENARIO], cache=False)
    assert without.controls == {}
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
    assert "control" in table.split("Predictions under the mark")[1].split("class")[0]
    story = wm.judge(report).story()
    header, worst = story.splitlines()[2:4]
    assert header.endswith("A/control")
    assert worst.endswith(("0.500", f"{report.controls['logits', 'bars'].auroc[1]:.3f}"))
    assert "the same ink, scrambled" in story


def test_the_round_trip(report):
    again = wm.ProbeReport.from_json(report.to_json())
    for key, scores in report.controls.items():
        np.testing.assert_array_equal(again.controls[key].auroc, scores.auroc)
    assert again.impact == report.impact


def test_marked_copies_have_no_control(tmp_path):
    from PIL import Image

    for name in ("plain", "marked"):
        (tmp_path / name).mkdir()
        for index, pixels in enumerate(PHOTOS[:4]):
            Image.fromarray(pixels // 2 if name == "marked" else pixels).save(
                tmp_path / name / f"{index}.png"
            )
    scenarios = [wm.PairedFolder("dark", tmp_path / "marked"), SCENARIO]
    found = wm.probe(Units(), tmp_path / "plain", scenarios, control=True, cache=False)
    assert {scenario for _, scenario in found.controls} == {"bars"}
    assert found.impact["dark"].control_flip_rate is None
