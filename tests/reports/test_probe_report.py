from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from pytest_watermark_guard import Impact, ProbeReport, Scores, SensitiveUnit
from pytest_watermark_guard.errors import ReportError

UNITS = st.integers(1, 6)


@st.composite
def reports(draw):
    units = draw(UNITS)
    names = tuple(draw(st.lists(st.text(), min_size=units, max_size=units)))
    areas = draw(arrays(float, units, elements=st.floats(0, 1)))
    errors = draw(arrays(float, units, elements=st.floats(0, 0.5) | st.just(np.nan)))
    return ProbeReport(
        model=draw(st.text()),
        baseline=draw(st.text()),
        n_images=draw(st.integers(1, 1000)),
        seed=draw(st.integers(0, 99)),
        scores={("logits", "s"): Scores("logits", "s", areas, errors, 5, names)},
        impact={"s": Impact(0.25, draw(st.none() | st.just(1)), draw(st.none() | st.text()), 0.1)},
        notes=tuple(draw(st.lists(st.text(), max_size=2))),
    )


def assert_same(one, other):
    for name in ("model", "baseline", "n_images", "seed", "impact", "notes", "version"):
        assert getattr(one, name) == getattr(other, name)
    assert list(one.scores) == list(other.scores)
    for key, scores in one.scores.items():
        np.testing.assert_array_equal(scores.auroc, other[key].auroc)
        np.testing.assert_array_equal(scores.standard_error, other[key].standard_error)
        assert scores.names == other[key].names


@given(reports())
def test_json_keeps_every_number_and_letter(report):
    text = report.to_json()
    assert_same(report, ProbeReport.from_json(text))
    assert ProbeReport.from_json(text).to_json() == text


def test_saved_and_loaded(tmp_path):
    scores = Scores("logits", "s", np.array([0.25]), np.array([0.1]), 9, ("的",))
    report = ProbeReport("m", "b", 9, 1, {("logits", "s"): scores})
    report.save(tmp_path / "r.json")
    assert_same(report, ProbeReport.load(tmp_path / "r.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no probe report"),
        ("[]", "holds no probe report"),
        ("{}", "is of format None"),
        ('{"format": "pytest-watermark-guard/report", "format_version": 99}', "is newer"),
        ('{"format": "pytest-watermark-guard/report", "format_version": 1}', "KeyError"),
        ("[" * 200_000, "RecursionError"),
    ],
)
def test_what_is_no_report(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ReportError, match=message):
        ProbeReport.load(tmp_path / "r.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ReportError, match="cannot read probe report"):
        ProbeReport.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("auroc", [0.5, 7], "outside"),
        ("auroc", [0.5], "one score for each unit"),
        ("auroc", [None, 0.5], "outside"),
        ("standard_error", [0.1], "one score for each unit"),
        ("layer", 3, "KeyError"),
    ],
)
def test_scores_that_are_none(field, value, message):
    scores = Scores("l", "s", np.array([0.5, 0.5]), np.zeros(2), 9, ("a", "b"))
    data = json.loads(ProbeReport("m", "b", 9, 1, {("l", "s"): scores}).to_json())
    data["scores"][0][field] = value
    with pytest.raises(ReportError, match=message):
        ProbeReport.from_json(json.dumps(data))


def test_names_that_are_not_utf_8_can_be_saved(tmp_path):
    scores = Scores("l", "s", np.array([0.5]), np.zeros(1), 9, ("a",))
    report = ProbeReport("m", "photos of b\udcff", 9, 1, {("l", "s"): scores})
    report.save(tmp_path / "r.json")
    assert ProbeReport.load(tmp_path / "r.json").baseline == report.baseline


def test_ranking_and_counting():
    scores = Scores("l", "s", np.array([0.5, 0.1, 0.9, 0.7]), np.zeros(4), 9, tuple("abcd"))
    assert scores.ranking().tolist() == [1, 2, 3, 0]
    assert [scores.count(tier) for tier in (0.5, 0.7, 0.9, 0.95)] == [4, 3, 2, 0]
    assert [unit.name for unit in scores.sensitive(0.7)] == ["b", "c", "d"]


def test_a_key_that_is_not_there():
    scores = Scores("logits", "latin", np.array([0.5]), np.zeros(1), 9, ("a",))
    report = ProbeReport("m", "b", 9, 1, {("logits", "latin"): scores})
    with pytest.raises(KeyError, match="a layer of logits and a scenario of latin"):
        report["latin"]


def test_plain_numbers_cross_process_borders():
    """A numpy scalar on a unit would break an xdist run and JSON."""
    scores = Scores("l", "s", np.array([0.99]), np.array([0.01]), 9, ("a",))
    json.dumps(vars(ProbeReport("m", "b", 9, 1, {("l", "s"): scores}).sensitive(0.9)[0]))


@pytest.mark.parametrize("missing", ["scores", "names", "impact"])
def test_a_report_that_lacks_a_part_is_refused(missing):
    scores = Scores("logits", "latin", np.array([0.99]), np.array([0.01]), 5, ("0",))
    report = ProbeReport("net", "photos", 5, 17, {("logits", "latin"): scores})
    data = json.loads(report.to_json())
    del data[missing]
    with pytest.raises(ReportError, match=f"KeyError: '{missing}'"):
        ProbeReport.from_json(json.dumps(data))


def test_the_strongest_unit_is_the_first_of_the_ranking():
    auroc = np.array([0.5, 0.1, 0.9, 0.6])
    scores = Scores("logits", "s", auroc, np.full(4, 0.01), 9, ("a", "b", "c", "d"))
    assert scores.strongest() == scores.unit(scores.ranking()[0])
    assert scores.strongest().name == "b"
    assert SensitiveUnit.from_dict(asdict(scores.strongest())) == scores.strongest()
