"""Sensitivity by the mark's size, opacity, place, length and colour."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ReportError, ScenarioError, SettingsError

SIDE = 64
PHOTOS = np.random.default_rng(0).integers(0, 90, (16, SIDE, SIDE, 3), dtype=np.uint8)
INK = wm.Scenario("ink", "AB", length=2, size=40)
EYE_SEES = wm.Preprocessing(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3)


class Eye(nn.Module):
    """Features: brightest value, mean, brightest on the left. Class 1 goes by the first."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0, 3, 0], [1, 0, 0], [0, 1, 0]]))

    def forward(self, x):
        left = x[..., : SIDE // 2].amax((1, 2, 3))
        return self.fc(torch.stack([x.amax((1, 2, 3)), x.mean((1, 2, 3)), left], 1))


def surface(vary, scenario=INK, **arguments):
    model = Eye()
    model.class_names = ["road", "carton", "lake"]
    arguments = {
        "preprocess": EYE_SEES,
        "cache": False,
        "device": "cpu",
        "name": "eye",
        **arguments,
    }
    return wm.surface(model, PHOTOS, scenario, vary, **arguments)


@pytest.fixture(scope="module")
def grid():
    return surface({"size": (20, 60), "opacity": (0.1, 0.3, 1.0)})


@pytest.fixture(scope="module")
def places():
    return surface({"position": ("left", "right", (0.0, 1.0))}, wm.Scenario("i", "I", length=1))


def test_each_point_is_a_probe_of_that_mark(grid):
    assert list(grid.vary.items()) == [("size", (20, 60)), ("opacity", (0.1, 0.3, 1.0))]
    assert len(grid.reports) == 6
    alone = wm.probe(
        Eye(),
        PHOTOS,
        (wm.Scenario("ink", "AB", length=2, size=60, opacity=0.3),),
        preprocess=EYE_SEES,
        cache=False,
        device="cpu",
    )
    for scores in alone:
        there = grid[60, 0.3][scores.layer, "ink"]
        np.testing.assert_array_equal(there.auroc, scores.auroc)
    assert grid[60, 0.3].model == "eye (size 60, opacity 0.3)"


def test_grids(grid):
    largest = grid.differentiability("features")
    assert largest.shape == (2, 3)
    for row, column in np.ndindex(2, 3):
        size, opacity = (20, 60)[row], (0.1, 0.3, 1.0)[column]
        scores = grid[size, opacity]["features", "ink"]
        assert largest[row, column] == scores.differentiability.max()
        assert grid.differentiability("features", 1)[row, column] == scores.differentiability[1]
        assert grid.counts("features", 0.8)[row, column] == scores.count(0.8)
        assert grid.flip_rate()[row, column] == grid[size, opacity].impact["ink"].flip_rate
    brightest = grid.differentiability("features", 0)
    assert (brightest[:, 2] == 1).all()  # white beats every pixel
    mean = grid.differentiability("features", 1)
    assert (np.diff(mean, axis=0) > 0)[:, 0].all()  # larger, more to see
    assert (np.diff(mean, axis=1) >= 0).all()  # more opaque, more to see
    assert mean[0, 0] < 0.9


def test_positions(places):
    left = places.differentiability("features", 2)
    np.testing.assert_array_equal(left, [1, 0.5, 1])
    assert places["right"] is places.reports[("right",)]
    assert places[0.0, 1.0] is places.reports[((0.0, 1.0),)]


def test_by_default_chinese_marks_of_several_sizes():
    photos = np.random.default_rng(1).integers(0, 90, (4, 224, 224, 3), dtype=np.uint8)
    found = wm.surface(Eye(), photos, cache=False, device="cpu")
    assert (found.model, found.scenario) == ("Eye", "chinese")
    assert [*found.reports] == [(10,), (20,), (30,)]


def test_a_ready_scenario_by_name_keeps_its_other_properties(monkeypatch):
    asked = []

    def record(model, images, scenarios, **arguments):
        asked.extend(scenarios)
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_watermark_guard.exploring.surface.probe", record)
    with pytest.raises(KeyboardInterrupt):
        surface({"length": (1, 2)}, "imagenet_w")
    (first,) = asked
    assert (first.name, first.length, first.opacity) == ("imagenet_w", 1, 0.5)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({}, "vary one property or two"),
        ({"size": (1,), "opacity": (1,), "length": (1,)}, "vary one property or two"),
        ({"font": ("serif",)}, "cannot vary 'font', only size, opacity"),
        ({"size": 30}, "size takes a sequence"),
        ({"color": "white"}, "color takes a sequence"),
        ({"size": ()}, "size takes a sequence"),
        ({"size": (30, 30.0)}, "size has a value twice"),
    ],
)
def test_what_cannot_be_varied(vary, message):
    with pytest.raises(SettingsError, match=message):
        surface(vary)


def test_wrong_values_are_said_before_any_probe(monkeypatch):
    monkeypatch.setattr("pytest_watermark_guard.exploring.surface.probe", None)
    with pytest.raises(ScenarioError, match="opacity must be in"):
        surface({"opacity": (0.5, 1.5)})
    with pytest.raises(ScenarioError, match="folder of marked copies"):
        surface({"size": (1,)}, wm.PairedFolder("theirs", "x"))
    with pytest.raises(SettingsError, match="pass scenario="):
        surface({"size": (1,)}, scenarios=("latin",))


def test_table_of_two_properties(grid):
    text = grid.table(units=[("features", 1)], ascii_only=True)
    lines = text.splitlines()
    assert lines[0] == "eye: ink marks by size and opacity"
    assert all(len(line) <= 80 for line in lines)
    title = lines.index("Units of features by d, of 3")
    cells = [[c.strip() for c in line.split("|")] for line in lines[title:]]
    header, *rows = [row for row in cells if len(row) == 9 and not row[0].startswith("-")]
    assert header == ["size", "opacity", ">=.7", ">=.8", ">=.9", ">=.95", "unit 1", "max d", "unit"]
    assert [row[:2] for row in rows] == [
        [str(size), f"{opacity:g}"] for size in (20, 60) for opacity in (0.1, 0.3, 1.0)
    ]
    chosen = grid.differentiability("features", 1).ravel()
    assert [row[6] for row in rows] == [f"{d:.3f}" for d in chosen]
    assert [row[7] for row in rows] == [
        f"{d:.3f}" for d in grid.differentiability("features").ravel()
    ]
    assert [row[3] for row in rows] == [str(n) for n in grid.counts("features", 0.8).ravel()]
    assert "carton +" in text


def test_tables_cannot_be_broken_by_names():
    hostile = wm.Scenario("a [red]b", "AB", length=2, size=40)
    found = surface({"size": (20,)}, hostile, name="x\x1b[31m\u202e\nmodel")
    text = found.table()
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[red]b" in text


@pytest.mark.parametrize("fixture", ["grid", "places"])
def test_pictures(fixture, request, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "surface.svg"
    request.getfixturevalue(fixture).plot(path, units=[("features", 2)])
    # Letters are drawn as paths; what they spell stands beside them.
    drawn = path.read_text(encoding="utf-8")
    for title in ("<!-- logits: ", "<!-- features: ", "d of unit 2 -->", "<!-- predictions that"):
        assert title in drawn


@pytest.mark.parametrize("fixture", ["grid", "places"])
def test_saved_and_loaded(fixture, request, tmp_path):
    found = request.getfixturevalue(fixture)
    found.save(tmp_path / "surface.json")
    again = wm.SurfaceReport.load(tmp_path / "surface.json")
    assert list(again.vary.items()) == list(found.vary.items())
    assert list(again.reports) == list(found.reports)
    assert again.table() == found.table()
    assert [r.to_json() for r in again.reports.values()] == [
        r.to_json() for r in found.reports.values()
    ]


def test_numpy_s_numbers_are_plain_in_the_file(tmp_path):
    found = surface({"size": list(np.arange(20, 50, 20))})
    found.save(tmp_path / "surface.json")
    assert wm.SurfaceReport.load(tmp_path / "surface.json").vary == {"size": (20, 40)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="x"), "is of format 'x'"),
        (lambda data: data["reports"].pop(), "its points do not match its grid"),
        (
            lambda data: data["reports"][0].update(point=[99, 0.1]),
            "its points do not match its grid",
        ),
        (lambda data: data.update(scenario="other"), "were probed with different layers"),
        (lambda data: data.update(reports=7), "holds no surface"),
        (lambda data: data.update(vary=None), "holds no surface"),
    ],
)
def test_files_that_hold_something_else(grid, tmp_path, change, message):
    path = tmp_path / "surface.json"
    grid.save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ReportError, match=message):
        wm.SurfaceReport.load(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ReportError, match="cannot read"):
        wm.SurfaceReport.load(tmp_path / "none.json")


def test_points_that_are_not_there(grid):
    with pytest.raises(KeyError, match=r"no point \(1, 2\) .* size: \(20, 60\)"):
        grid[1, 2]
