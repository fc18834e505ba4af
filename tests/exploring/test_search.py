"""Images ranked by a model's own watermark detectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ImagesError, ReportError, SettingsError

SIDE = 64
PHOTOS = np.random.default_rng(0).integers(0, 90, (16, SIDE, SIDE, 3), dtype=np.uint8)
INK = wm.Scenario("ink", "AB", length=2, size=40)
HOSTILE = "<script>alert(1)</script>\u202e[red]\n" + "x" * 100
PLAIN = {
    "preprocess": wm.Preprocessing(size=(SIDE, SIDE), mean=(0.0,) * 3, std=(1.0,) * 3),
    "device": "cpu",
    "cache": False,
}


class Eye(nn.Module):
    """Features: the brightest value, how dark the brightest is (marks silence it), nothing."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        peak = x.amax((1, 2, 3))
        return self.fc(torch.stack([peak, 5 * (1 - peak) ** 2, torch.zeros_like(peak)], 1))


@pytest.fixture(scope="module")
def report():
    return wm.probe(Eye(), PHOTOS, (INK,), **PLAIN)


@pytest.fixture
def folder(tmp_path):
    """Thirty photos, of which three were marked, one with a name that breaks what it can."""
    rng = np.random.default_rng(1)
    root = tmp_path / "train"
    for index in range(30):
        pixels = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        name = f"road/{index}.png"
        if index in (3, 17, 20):
            pixels[10:20, 5:50] = 255 - index
            name = f"carton/{'a' if index == 3 else HOSTILE.replace('/', '') + str(index)}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    return root


def test_marked_images_come_first(report, folder):
    found = wm.search(Eye(), folder, report, top=5, **PLAIN)
    assert found.n_images == 30
    assert [unit.index for unit in found.detectors[:2]] == [0, 1]
    assert [unit.fires for unit in found.detectors[:2]] == [True, False]
    folders = [find.image.split("/")[0] for find in found.finds]
    assert folders == ["carton", "carton", "carton", "road", "road"]
    assert found.finds[0].image == "carton/a.png"  # the brightest
    assert [find.score for find in found.finds] == sorted(
        (find.score for find in found.finds), reverse=True
    )


def test_the_score_is_the_mean_standardised_reaction(report, folder):
    found = wm.search(Eye(), folder, report, top=None, **PLAIN)
    assert len(found.finds) == 30
    reactions = {}
    for find in found.finds:
        peak = np.asarray(Image.open(folder / find.image)).max() / 255
        reactions[find.image] = (peak, -5 * (1 - peak) ** 2, 0.0)
    table = np.array([*reactions.values()])
    spread = table.std(axis=0)
    spread[2] = 1  # it never changes
    expected = ((table - table.mean(axis=0)) / spread).mean(axis=1)
    np.testing.assert_allclose([find.score for find in found.finds], expected, atol=1e-4)


def test_by_chosen_units(report, folder):
    chosen = report.sensitive(0.9)
    assert {unit.layer for unit in chosen} == {"features", "logits"}
    one = [unit for unit in chosen if (unit.layer, unit.index) == ("features", 0)]
    found = wm.search(Eye(), folder, one * 2, top=3, **PLAIN)
    assert found.detectors == tuple(one)
    assert {find.image.split("/")[0] for find in found.finds} == {"carton"}


def test_no_image_is_run_with_a_mark(folder, report):
    seen = []

    class Counting(Eye):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    arguments = {**PLAIN, "precision": "float32"}
    wm.search(Counting(), folder, report, **arguments)
    searched = sum(seen)
    seen.clear()
    wm.probe(Counting(), folder, (INK,), ("features",), **arguments)
    # Beside the few passes that find the layers, a probe runs each image twice.
    assert sum(seen) - searched == 30


def test_array_of_images(report):
    photos = PHOTOS.copy()
    photos[5, 10:20, 10:50] = 255
    found = wm.search(Eye(), photos, report, top=1, **PLAIN)
    assert found.finds[0].image == "5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"found": []}, "no unit to search by"),
        ({"found": ["carton"]}, "pass a ProbeReport, or units"),
        ({"top": 0}, "top must be an integer >= 1"),
        ({"top": 2.5}, "top must be an integer >= 1"),
        (
            {"found": [wm.SensitiveUnit("features", "s", 9, "9", 0.9, 0.9, 0.8, 0.95)]},
            "has no unit 9 in 'features', of 3",
        ),
        ({"scenarios": ("latin",)}, "scenarios"),
    ],
)
def test_what_cannot_be_searched(report, arguments, message):
    with pytest.raises((SettingsError, TypeError), match=message):
        wm.search(Eye(), PHOTOS, **{"found": report, **PLAIN, **arguments})


def test_table(report, folder):
    found = wm.search(Eye(), folder, report, top=5, **PLAIN)
    text = found.table()
    assert "\u202e" not in text
    assert "The 5 highest of 30 images" in text
    assert "carton 3, road 2" in text
    assert "<script>" in text
    assert "…" in text  # figures stay, long names are cut
    assert "…" not in found.table(ascii_only=True)


def test_gallery(report, folder, tmp_path):
    found = wm.search(Eye(), folder, report, top=9, **PLAIN)
    path = tmp_path / "sheet.png"
    found.gallery(path, folder)
    sheet = Image.open(path).convert("RGB")
    assert (sheet.width, sheet.height) == (8 * 168 + 8, 2 * 196 + 8)
    # The first picture is in the middle of the first place, pixel for pixel.
    corner = 8 + (160 - SIDE) // 2
    first = sheet.crop((corner, corner, corner + SIDE, corner + SIDE))
    expected = Image.open(folder / found.finds[0].image)
    np.testing.assert_array_equal(np.asarray(first), np.asarray(expected))
    labels = np.asarray(sheet.crop((8, 8 + 160, 168, 8 + 160 + 28)))
    assert labels.min() < 128, "no name is written"
    gap = np.asarray(sheet.crop((168, 0, 176, sheet.height)))
    assert gap.min() == 255, "a long name runs into its neighbour"


def test_gallery_of_other_images(report, folder, tmp_path):
    found = wm.search(Eye(), folder, report, top=2, **PLAIN)
    with pytest.raises(ImagesError, match=r"'carton/a\.png' is not among the 16 images"):
        found.gallery(tmp_path / "sheet.png", PHOTOS)
    with pytest.raises(SettingsError, match=r"must end in one of \.png"):
        found.gallery(tmp_path / "sheet.html", folder)


def test_saved_and_loaded(report, folder, tmp_path):
    found = wm.search(Eye(), folder, report, top=5, **PLAIN)
    found.save(tmp_path / "search.json")
    assert wm.SearchReport.load(tmp_path / "search.json") == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format="x"), "is of format 'x'"),
        (lambda data: data.update(finds=[["a"]]), "holds no search"),
        (lambda data: data.update(detectors=[{}]), "holds no search"),
        (lambda data: data.pop("notes"), "holds no search"),
    ],
)
def test_files_that_hold_something_else(report, tmp_path, change, message):
    path = tmp_path / "search.json"
    wm.search(Eye(), PHOTOS, report, **PLAIN).save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ReportError, match=message):
        wm.SearchReport.load(path)
    with pytest.raises(ReportError, match="cannot read"):
        wm.SearchReport.load(tmp_path / "none.json")


@pytest.fixture
def varied(tmp_path):
    """Sixty photos of different brightness, three of them marked."""
    rng = np.random.default_rng(2)
    root = tmp_path / "varied"
    root.mkdir()
    for index in range(60):
        pixels = rng.integers(0, rng.integers(80, 100), (SIDE, SIDE, 3), dtype=np.uint8)
        if index < 3:
            pixels[10:20, 5:50] = 255
        Image.fromarray(pixels).save(root / f"{'marked' if index < 3 else 'photo'}{index}.png")
    return root


def test_a_cutoff_parts_marks_from_noise(report, varied, tmp_path):
    found = wm.search(Eye(), varied, report, top=9, **PLAIN)
    assert found.standing_out == 3
    assert [find.image[:6] for find in found.finds[:3]] == ["marked"] * 3
    assert found.finds[2].score > 2 * found.cutoff
    text = " ".join(found.table().split())
    assert f"3 images from the cut-off {found.cutoff:.2f} on; what lies below may be chance" in text
    # On the contact sheet a line is between them.
    found.gallery(tmp_path / "sheet.png", varied)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert sheet.shape[0] == 2 * 196 + 26 + 8
    assert (sheet[196 + 8, 100] == (0xB3, 0x26, 0x1E)).all()


def test_reports_of_older_versions_have_no_cutoff(report, tmp_path):
    path = tmp_path / "search.json"
    wm.search(Eye(), PHOTOS, report, **PLAIN).save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["cutoff"]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert wm.SearchReport.load(path).standing_out == len(data["finds"])
