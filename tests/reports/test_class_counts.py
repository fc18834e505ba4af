"""Predictions by class: the gap metrics of ImageNet-W, for any scenario."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.terminal import render_reports

SIDE = 64
NAMES = ["dark", "carton", "bright"]
WHITE = wm.Scenario("white", "#", length=3, size=40)


class Brightest(nn.Module):
    """A bright spot makes it say "carton", a bright image "bright"."""

    class_names = NAMES

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0, 0], [1, 0], [0, 2]]))
            self.head.bias.copy_(torch.tensor([0.5, -0.2, -0.5]))

    def forward(self, x):
        return self.head(torch.stack([x.amax((1, 2, 3)), x.mean((1, 2, 3))], 1))


PHOTOS = np.random.default_rng(0).integers(0, 140, (40, SIDE, SIDE, 3), dtype=np.uint8)
PHOTOS[::4] = 250
PHOTOS[1, 3, 3] = 255  # a carton by itself
LABELS = [2 if index % 4 == 0 else 0 for index in range(len(PHOTOS))]
LABELS[1] = LABELS[2] = LABELS[3] = 1


@pytest.fixture(scope="module")
def report():
    return wm.probe(
        Brightest(),
        PHOTOS,
        (WHITE,),
        ("logits",),
        wm.Preprocessing(size=(SIDE, SIDE)),
        labels=LABELS,
        cache=False,
    )


def predictions():
    """Predict without any of the probe's counting."""
    batches = wm.probing_batches(
        PHOTOS, (WHITE,), preprocess=wm.Preprocessing(size=(SIDE, SIDE)), device="cpu"
    )
    before, after, order = [], [], []
    for batch in batches:
        before += Brightest()(batch.images).argmax(1).tolist()
        after += Brightest()(batch.marked["white"]).argmax(1).tolist()
        order += map(int, batch.identities)
    assert order == sorted(order)
    return before, after


def test_shares_and_accuracies_by_class(report):
    counts = report.impact["white"].by_class
    before, after = predictions()
    for index in range(3):
        grown = Counter(after)[index] - Counter(before)[index]
        assert counts.share_gap(index) == grown / len(PHOTOS)
        own = [i for i, label in enumerate(LABELS) if label == index]
        rightly = sum(after[i] == index for i in own) - sum(before[i] == index for i in own)
        assert counts.top1_gap(index) == rightly / len(own)
    assert counts.top1_gap(1) == pytest.approx(2 / 3)  # two of three cartons only with the mark
    impact = report.impact["white"]
    assert counts.share_gap(impact.gains_index) == impact.gains_share
    assert (impact.gains_index, impact.gains_gap) == (1, counts.top1_gap(1))
    text = render_reports([(report, [])], 0.95)
    assert "its gap" in text
    assert "+66.7%" in text
    assert impact.top1_drop == sum(
        (b == t) - (a == t) for a, b, t in zip(after, before, LABELS, strict=True)
    ) / len(PHOTOS)


def test_without_labels_there_is_no_accuracy():
    report = wm.probe(
        Brightest(),
        PHOTOS,
        (WHITE,),
        ("logits",),
        wm.Preprocessing(size=(SIDE, SIDE)),
        cache=False,
    )
    counts = report.impact["white"].by_class
    assert counts.share_gap(1) > 0
    assert [counts.top1_gap(index) for index in range(3)] == [None] * 3
    assert report.impact["white"].gains_gap is None
    assert "its gap" not in render_reports([(report, [])], 0.95)


def test_reports_keep_them(report):
    again = wm.ProbeReport.from_json(report.to_json())
    assert again.impact == report.impact
    assert again.impact["white"].by_class is not None


def test_reports_from_before_have_none(report):
    data = json.loads(report.to_json())
    del data["impact"]["white"]["by_class"]
    assert wm.ProbeReport.from_json(json.dumps(data)).impact["white"].by_class is None


@pytest.mark.parametrize("value", [[], 7, {"labelled": [1]}])
def test_reports_with_other_counts(report, value):
    data = json.loads(report.to_json())
    data["impact"]["white"]["by_class"] = value
    with pytest.raises(ReportError, match="holds no probe report"):
        wm.ProbeReport.from_json(json.dumps(data))


def test_counts_of_unequal_length(report):
    data = json.loads(report.to_json())
    data["impact"]["white"]["by_class"]["labelled"].append(3)
    with pytest.raises(ReportError, match="unequal length"):
        wm.ProbeReport.from_json(json.dumps(data))
