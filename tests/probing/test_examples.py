"""Which images move a unit most and least, named by the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ReportError

SMALL = wm.Scenario("small", ["A", "B"], length=3, size=16)
FITS = wm.Preprocessing(size=(48, 48), mean=(0.0,) * 3, std=(1.0,) * 3)


class Inked(nn.Module):
    """Feature 0 rises with ink, feature 1 falls by it, features 2 and 3 hardly see it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        corner = x[:, 0, 0, :2].mean(1)
        return self.fc(torch.stack([x.amax((1, 2, 3)) + mean, -mean * 9, corner, corner * 2], 1))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(10):
        pixels = rng.integers(0, 40 + 18 * index, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def probe(model, images, **arguments):
    arguments = {"preprocess": FITS, "cache": False, "precision": "float32", **arguments}
    return wm.probe(model, images, (SMALL,), ("features",), examples=True, **arguments)


def test_most_and_least_are_those_of_the_activations(photos):
    report = probe(Inked(), photos)
    shifts = {0: {}, 1: {}}
    for batch in wm.probing_batches(photos, (SMALL,), preprocess=FITS, batch_size=4):
        marked = batch.marked["small"]
        for index, name in enumerate(batch.identities):
            clean, inked = batch.images[index], marked[index]
            rise = inked.max() + inked.mean() - clean.max() - clean.mean()
            shifts[0][name] = float(rise)
            shifts[1][name] = float(9 * (inked.mean() - clean.mean()))
    units = {unit.index: unit for unit in report.examples.units}
    assert len(units) == 3
    for index, shift in shifts.items():
        ordered = sorted(shift, key=shift.get, reverse=True)
        assert [s.identity for s in units[index].most] == ordered[:3]
        assert [s.identity for s in units[index].least] == ordered[:-4:-1]
    # Silenced: the mark lowers it, and that is the direction that counts.
    first = units[1].most[0]
    assert first.after - first.before == pytest.approx(-shifts[1][first.identity], rel=1e-4)


def test_worst_units_come_first_each_once(photos):
    report = probe(Inked(), photos)
    d = report["features", "small"].differentiability
    found = [d[unit.index] for unit in report.examples.units]
    assert found == sorted(found, reverse=True)
    assert found[0] == d.max()
    assert len({(u.layer, u.index) for u in report.examples.units}) == len(found)


def test_nobody_pays_who_did_not_ask(photos):
    assert wm.probe(Inked(), photos, (SMALL,), preprocess=FITS, cache=False).examples is None


def test_few_images_are_not_both_most_and_least(photos):
    for unit in probe(Inked(), photos, max_images=3).examples.units:
        assert len(unit.most) == len(unit.least) == 1
        assert unit.most != unit.least


def test_how_the_images_are_found_again(photos):
    examples = probe(Inked(), photos).examples
    assert examples.images == str(photos)
    assert wm.Scenario(**examples.marks[0]) == SMALL
    assert examples.geometry == {"size": (48, 48), "resize": None, "interpolation": "bilinear"}
    array = np.zeros((4, 48, 48, 3), np.uint8)
    assert probe(Inked(), array).examples.images is None
    assert probe(Inked(), None, max_images=4).examples.images == "builtin"


def test_they_survive_the_report_s_json(photos):
    report = probe(Inked(), photos)
    text = report.to_json()
    again = wm.ProbeReport.from_json(text)
    assert again.examples.units == report.examples.units
    assert again.to_json() == text
    assert wm.Scenario(**again.examples.marks[0]) == SMALL
    data = json.loads(text)
    del data["examples"]  # as older versions wrote it
    assert wm.ProbeReport.from_json(json.dumps(data)).examples is None
    data["examples"] = {"units": 3}
    with pytest.raises(ReportError, match="holds no probe report"):
        wm.ProbeReport.from_json(json.dumps(data))


class Flips(nn.Module):
    """Says "dark" of a photo, and "bright" of one on which something is printed in white."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.eye(2))

    def forward(self, x):
        peak = x.amax((1, 2, 3))
        return self.fc(torch.stack([torch.full_like(peak, 0.8), peak], 1))


def test_an_image_that_becomes_another_class_is_named(photos, tmp_path):
    arguments = {"preprocess": FITS, "cache": False, "class_names": ["dark", "bright"]}
    large = wm.Scenario("large", ["A", "B"], length=2, size=80)
    report = wm.probe(Flips(), photos, (large,), ("logits",), examples=True, **arguments)
    (example,) = report.examples.predictions
    assert (example.scenario, example.before, example.after) == ("large", "dark", "bright")
    assert example.identity in {f"{index}.png" for index in range(10)}
    again = wm.ProbeReport.from_json(report.to_json())
    assert again.examples.predictions == report.examples.predictions
    report.to_html(tmp_path / "page.html", images=photos)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "without: <b>dark</b>" in page
    assert 'with the mark: <b class="after">bright</b>' in page


def test_where_no_prediction_changes_none_is_named(photos):
    calm = wm.probe(
        Inked(), photos, (SMALL,), ("features",), examples=True, preprocess=FITS, cache=False
    )
    assert calm.examples.predictions == ()
