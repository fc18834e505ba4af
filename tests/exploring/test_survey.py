"""Many models in one report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ImagesError, ReportError, ScenarioError, SettingsError

PHOTOS = np.random.default_rng(0).integers(0, 90, (24, 48, 48, 3), dtype=np.uint8)
SMALL = wm.Scenario("small", ["A", "B"], length=3, size=16)


class Bright(nn.Module):
    """Feature 0 sees the brightest pixel, and so ink; class 1 goes by it with this weight."""

    def __init__(self, weight, classes=3):
        super().__init__()
        self.fc = nn.Linear(2, classes, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(
                torch.tensor([[0.0, 1], [weight, 0.1], *[[0, -1]] * (classes - 2)])
            )

    def forward(self, x):
        return self.fc(torch.stack([x.amax((1, 2, 3)), x.mean((1, 2, 3))], 1))


class Broken(nn.Module):
    def forward(self, x):
        raise RuntimeError("no such bucket\nat all")


def survey(models, **arguments):
    arguments = {"preprocess": wm.Preprocessing(size=(48, 48)), "cache": False, **arguments}
    return wm.survey(models, PHOTOS, scenarios=(SMALL,), **arguments)


@pytest.fixture(scope="module")
def found():
    names = ["road", "carton", "lake"]
    models = {
        "fires": Bright(1.0),
        "silent": Bright(-1.0),
        "broken": Broken(),
        "no such": "torchvision:nosuch",
        "other <classes>": Bright(1.0, classes=4),
    }
    for name in ("fires", "silent"):
        models[name].class_names = names
    return survey(models)


def test_models_fail_one_by_one(found):
    assert [*found.reports] == ["fires", "silent", "other <classes>"]
    assert [*found.failures] == ["broken", "no such"]
    assert found.failures["broken"].startswith("Broken raised RuntimeError: no such")
    assert "torchvision has no classification model" in found.failures["no such"]


def test_each_model_is_probed_as_by_itself(found):
    alone = wm.probe(
        Bright(1.0),
        PHOTOS,
        (SMALL,),
        preprocess=wm.Preprocessing(size=(48, 48)),
        cache=False,
    )
    for scores in alone:
        together = found.reports["fires"][scores.layer, scores.scenario]
        np.testing.assert_array_equal(together.auroc, scores.auroc)


def test_classes_are_ranked_over_the_models_that_have_them(found):
    ranked = found.classes("small")
    assert ranked.models == ("fires", "silent")
    assert ranked.left_out == ("other <classes>",)
    assert ranked.names == ("road", "carton", "lake")
    fires = found.reports["fires"]["logits", "small"].auroc
    silent = found.reports["silent"]["logits", "small"].auroc
    assert fires[1] > 0.9
    assert silent[1] < 0.1
    np.testing.assert_array_equal(ranked.mean, (fires + silent) / 2)
    assert sorted(ranked.ranking(), key=lambda i: -ranked.mean[i]) == list(ranked.ranking())
    with pytest.raises(KeyError, match="no model of this survey"):
        found.classes("chinese")


def test_counts_by_model(found):
    counts = found.counts("features", "small", 0.9)
    assert counts["fires"] == (found.reports["fires"]["features", "small"].count(0.9), 2)
    assert found.counts("features", "chinese", 0.9) == {}


def test_saved_and_loaded(found, tmp_path):
    found.save(tmp_path / "survey.json")
    again = wm.SurveyReport.load(tmp_path / "survey.json")
    assert again.failures == found.failures
    assert [r.to_json() for r in again.reports.values()] == [
        r.to_json() for r in found.reports.values()
    ]
    assert again.table() == found.table()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no survey"),
        ("{", "holds no survey"),
        ('{"format": "x", "format_version": 1}', "is of format 'x'"),
        (None, "cannot read"),
    ],
)
def test_files_that_hold_something_else(tmp_path, content, message):
    path = tmp_path / "survey.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ReportError, match=message):
        wm.SurveyReport.load(path)


def test_the_table_names_every_model_and_says_what_failed(found):
    text = found.table(ascii_only=True)
    assert "Survey of 3 models" in text
    assert "Not probed: broken: Broken raised RuntimeError: no such bucket at all" in text
    assert "Without models of other classes: other <classes>." in text
    assert "carton [1]" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert text.isascii()
    d = max(s.differentiability.max() for s in found.reports["fires"] if s.layer == "logits")
    row = next(line for line in text.splitlines() if line.startswith("fires "))
    assert f"{d:.3f}" in row


def test_the_picture_is_drawn(found, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    found.plot(tmp_path / "survey.svg", "small")
    drawn = (tmp_path / "survey.svg").read_text("utf-8")
    assert "carton" in drawn
    assert "<classes>" not in drawn
    with pytest.raises(SettingsError, match="no model was probed under 'latin', only under small"):
        found.plot(tmp_path / "none.png", "latin")


def test_models_of_one_name_are_told_apart():
    twice = survey([Bright(1.0), Bright(-1.0)], layers=("logits",))
    assert [*twice.reports] == ["Bright", "Bright (2)"]
    one, other = (r["logits", "small"].auroc[1] for r in twice.reports.values())
    assert one > 0.9 > 0.1 > other


@pytest.mark.parametrize("models", [[], {}, "torchvision:resnet18"])
def test_there_must_be_models(models):
    with pytest.raises(SettingsError, match="survey"):
        survey(models)


def test_the_json_is_plain(found, tmp_path):
    found.save(tmp_path / "survey.json")
    data = json.loads((tmp_path / "survey.json").read_text("utf-8"))
    assert data["format"] == "pytest-watermark-guard/survey"
    assert data["reports"]["fires"]["format"] == "pytest-watermark-guard/report"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_image": 3}, TypeError),
        ({"name": "mine"}, TypeError),
        ({"precision": "float16"}, SettingsError),
        ({"scenarios": ("klingon",)}, ScenarioError),
        ({"images": "no such folder"}, ImagesError),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_argument_is_no_model_s_failure(arguments, error):
    with pytest.raises(error):
        wm.survey([Bright(1.0), Bright(2.0)], **{"images": PHOTOS, **arguments})
