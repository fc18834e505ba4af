"""What all reports can do alike: be printed, drawn, written to a page, and read as rows."""

from __future__ import annotations

import base64
import json
import re
import sys
import types
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.ownership import OwnershipReport
from pytest_watermark_guard.reports.figure import ALERT, INK, LINE, SHADES
from pytest_watermark_guard.reports.probe_figure import SERIES
from pytest_watermark_guard.reports.search import Find

NAMES = tuple(f"class number {index}" for index in range(300))


def scores(scenario, layer="logits", seed=0):
    areas = np.random.default_rng(seed).uniform(0.1, 0.9, len(NAMES))
    return wm.Scores(layer, scenario, areas, areas * 0 + 0.01, 256, NAMES)


def probe(model="torchvision:resnet18", scenarios=("chinese", "latin", "hindi", "arabic_numerals")):
    found = {
        (layer, name): scores(name, layer, seed)
        for seed, (layer, name) in enumerate(
            (layer, name) for layer in ("logits", "features") for name in scenarios
        )
    }
    return wm.ProbeReport(model, "256 images of photos", 256, 17, found)


PROBE = probe()
SMALL = probe(scenarios=("chinese",))
DETECTORS = tuple(PROBE["features", "chinese"].unit(index) for index in range(20))
FINDS = tuple(Find(f"photos/{i}.jpg", 6.0 - 0.2 * i) for i in range(20))


def head(alpha, d):
    areas = np.array([d, 0.4])
    found = {"chinese": wm.Scores("logits", "chinese", areas, areas * 0, 60, ("a", "b"))}
    flips, none = {"chinese": 0.1}, {"chinese": None}
    return SweptHead(alpha, 3, 0.9, (0.85, 0.95), 0.0, (-0.02, 0.02), found, flips, none)


LATER = replace(PROBE, scores={**PROBE.scores, ("logits", "chinese"): scores("chinese", seed=99)})
HEADS = (head(0.0, 0.97), head(0.1, 0.7))
REPORTS = {
    "probe": PROBE,
    "survey": wm.SurveyReport({f"model {i}": PROBE for i in range(30)}, {"gone": "no such file"}),
    "surface": wm.SurfaceReport(
        "resnet18", "chinese", {"size": (10, 20)}, {(10,): SMALL, (20,): SMALL}
    ),
    "search": wm.SearchReport("resnet18", "photos", 998, DETECTORS, FINDS, (), 3.1),
    "sweep": wm.SweepReport(
        "resnet18",
        ("chinese",),
        0.95,
        0.01,
        17,
        100,
        120,
        ("a", "b"),
        1.0,
        tuple(range(30)),
        "w",
        HEADS,
        HEADS,
    ),
    "ownership": OwnershipReport(
        "release", "labels", "ab" * 20, 2.0**-20, 0.1, (0.1,) * 20, 0.6, 0.5, 64, "photos", 9
    ),
    "comparison": wm.compare(PROBE, LATER),
}


@pytest.fixture(params=sorted(REPORTS))
def report(request):
    return REPORTS[request.param]


def test_printing_takes_ten_lines(report):
    lines = repr(report).splitlines()
    assert 2 <= len(lines) <= 10
    assert lines[0].startswith(type(report).__name__)
    assert max(map(len, lines)) < 400


def test_the_table_fits_the_terminal(report):
    assert "\n" in report.table()
    assert report.table(100, ascii_only=True).isascii()
    assert "\x1b[" in report.table(color=True)


def test_figures_come_back_and_are_written(report, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    figure = report.plot(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert figure.axes
    assert report.plot().axes


def test_data_are_plain(report):
    assert json.loads(json.dumps(report.to_dict()))


def test_rows_become_a_frame(report, monkeypatch):
    pandas = types.ModuleType("pandas")
    pandas.DataFrame = lambda rows: rows
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    rows = report.to_frame()
    assert len({tuple(row) for row in rows}) == 1  # the same columns in each
    assert len(rows[0]) >= 4


def test_without_pandas_one_learns_what_to_do(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingsError, match="pip install pandas"):
        report.to_frame()


def test_figures_of_a_page_have_only_colours_that_a_dark_page_changes(report, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    report.to_html(tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text("utf-8")
    images = re.findall('data:image/svg[+]xml;base64,([^"]+)', text)
    for image in map(base64.b64decode, images):
        _, _, drawn = image.decode().partition("</style>")
        assert {*re.findall("#[0-9a-f]{6}", drawn)} <= {INK, LINE, ALERT, *SHADES, *SERIES}
    assert images or isinstance(report, OwnershipReport)  # whose page has no figure


def test_a_page_of_its_own(report, tmp_path):
    report.to_html(tmp_path / "found.html")
    text = (tmp_path / "found.html").read_text("utf-8")
    assert "default-src 'none'" in text
    assert "<table" in text
    assert "<h1" in text


def test_a_page_without_rows_to_sort_has_no_script(tmp_path):
    REPORTS["search"].to_html(tmp_path / "found.html")
    assert "<script" not in (tmp_path / "found.html").read_text("utf-8")


def test_notebooks_show_a_small_table(report):
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)

    tags = []
    Tags().feed(report._repr_html_())
    assert 1 <= tags.count("table") <= 1
    assert tags.count("tr") <= 9
    hostile = wm.SurveyReport({"<script>": PROBE})
    assert "<script>" not in hostile._repr_html_()


def test_the_frame_of_a_probe_has_every_unit(monkeypatch):
    pandas = types.ModuleType("pandas")
    pandas.DataFrame = lambda rows: rows
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    rows = PROBE.to_frame()
    assert len(rows) == 8 * len(NAMES)
    assert [row["d"] for row in rows] == sorted((row["d"] for row in rows), reverse=True)
    row = rows[5]
    unit = PROBE[row["layer"], row["scenario"]].unit(row["index"])
    assert (row["name"], row["A"], row["low"]) == (unit.name, unit.auroc, unit.low)


def test_the_package_lists_its_public_names_alone():
    names = dir(wm)
    assert {"probe", "survey", "ownership", "__version__"} <= set(names)
    assert not [name for name in names if name.startswith("_") and name != "__version__"]
    assert "importlib" not in names
    assert all(hasattr(wm, name) for name in names)


def test_text_from_outside_is_printed_as_text():
    report = replace(SMALL, model="net\n::error::\x1b[2J")
    first = repr(report).splitlines()[0]
    assert "\\n" in first
    assert "\x1b" not in repr(report)


def test_a_page_of_a_report_is_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    for name in ("a.html", "b.html"):
        REPORTS["search"].to_html(tmp_path / name)
    first, second = ((tmp_path / name).read_text("utf-8") for name in ("a.html", "b.html"))
    pictures = [re.findall(r"data:image/svg[^\"]+", page) for page in (first, second)]
    assert pictures[0]
    assert pictures[0] == pictures[1]
    drawn = base64.b64decode(pictures[0][0].partition(",")[2])
    assert b"<text" in drawn  # which a reader can find and copy
