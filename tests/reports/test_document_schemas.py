"""The published schemas of what reports save, against what they really save."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import features
from torch import nn

import pytest_watermark_guard as wm

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
pytestmark = pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm")


class Net(nn.Module):
    """Nine features, of which one sees white strokes."""

    preprocessing = wm.Preprocessing(size=(48, 48), resize=48, mean=(0,) * 3, std=(1,) * 3)

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(9, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.arange(18.0).view(2, 9).cos())

    def forward(self, x):
        strokes = ((x[..., 1:] - x[..., :-1]).amin(1) > 0.2).float().mean((1, 2))
        colours = nn.functional.adaptive_avg_pool2d(x, 2)[:, :2].flatten(1)
        return self.fc(torch.cat([colours, strokes[:, None]], 1))


@pytest.fixture(scope="module")
def photos():
    return np.random.default_rng(0).integers(0, 120, (16, 48, 48, 3), dtype=np.uint8)


def schema(name):
    path = files("pytest_watermark_guard") / f"schema/{name}.schema.json"
    return json.loads(path.read_text("utf-8"))


def check(name, document, tmp_path):
    """Hold a document against its schema, which must describe all of its fields."""
    document.save(tmp_path / "saved.json")
    data = json.loads((tmp_path / "saved.json").read_text("utf-8"))
    published = schema(name)
    jsonschema.Draft202012Validator(published).validate(data)
    described = set(published["properties"])
    for part in (*published.get("oneOf", ()), *published.get("$defs", {}).values()):
        described |= set(part.get("properties", ())) if name == "mask" else set()
    assert set(data) <= described
    return data


@pytest.fixture
def report(photos):
    return wm.probe(Net(), photos, ("chinese",))


def test_survey(photos, tmp_path):
    found = wm.survey({"net": Net(), "none": "no.such:module"}, photos, scenarios=("chinese",))
    data = check("survey", found, tmp_path)
    assert list(data["failures"]) == ["none"]


def test_surface(photos, tmp_path):
    vary = {"size": (10, 20), "color": ("white", "red")}
    check("surface", wm.surface(Net(), photos, "chinese", vary=vary), tmp_path)


def test_search(photos, report, tmp_path):
    found = wm.search(Net(), photos, report.sensitive(0.6))
    assert check("search", found, tmp_path)["finds"]


def test_comparison(photos, report, tmp_path):
    turned = {key: replace(one, auroc=1 - one.auroc) for key, one in report.scores.items()}
    data = check("comparison", wm.compare(report, replace(report, scores=turned)), tmp_path)
    assert data["changes"]


@pytest.mark.filterwarnings("default")
def test_sweep(photos, tmp_path):
    pytest.importorskip("concept_erasure")
    labels = [0, 1] * 8
    found = wm.sweep(
        Net(),
        photos,
        photos[::-1].copy(),
        scenarios=("chinese",),
        train_labels=labels,
        validation_labels=labels,
    )
    data = check("sweep", found, tmp_path)
    assert data["erased"] is not None
    assert set(data["heads"][0]) == set(schema("sweep")["$defs"]["head"]["properties"])


def test_mask_and_erasure(photos, report, tmp_path):
    check("mask", wm.FeatureMask.from_report(report, fraction=0.2), tmp_path)
    pytest.importorskip("concept_erasure")
    check("mask", wm.FeatureErasure.fit(Net(), photos, ("chinese",)), tmp_path)


def test_ownership(photos, tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.preprocessing = wm.Preprocessing(size=(8, 8))
    key = wm.ownership.generate_key(net, photos, pairs=2, steps=0)
    found = wm.ownership.verify(net, key, photos, {"twin": net})
    data = check("ownership", found, tmp_path)
    assert set(data["report"]) == set(schema("ownership")["properties"]["report"]["properties"])


def test_all_are_listed():
    page = Path(__file__).parents[2] / "docs" / "reference" / "json.md"
    names = {path.name for path in (files("pytest_watermark_guard") / "schema").iterdir()}
    assert {name for name in names if name not in page.read_text("utf-8")} == set()
