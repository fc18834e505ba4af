"""JSON and TOML of strangers: what is read can be written again, the rest is one of our errors."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pytest
import torch
from fuzzing import INPUTS, counted, told, tried
from hypothesis import HealthCheck, given, settings, strategies as st
from mutating import documents, mutants
from small_reports import ERASURE, OWNED, REPORT, SEARCH, SURFACE, SURVEY, SWEEP

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.mitigation.sweep_report import SweepReport
from pytest_watermark_guard.ownership import OwnershipReport
from pytest_watermark_guard.plugin.known_units_file import read_known, write_known
from pytest_watermark_guard.probing.names import unit_names
from pytest_watermark_guard.reports.json_file import write_json
from pytest_watermark_guard.reports.known_units import KnownUnit
from pytest_watermark_guard.reports.release_file import read_release

DOCUMENTS = {
    "probe": (REPORT, wm.ProbeReport.load),
    "survey": (SURVEY, wm.SurveyReport.load),
    "surface": (SURFACE, wm.SurfaceReport.load),
    "search": (SEARCH, wm.SearchReport.load),
    "mask": (wm.FeatureMask((1, 3), 9, "ab", "two of nine"), wm.FeatureMask.load),
    "erasure": (ERASURE, wm.FeatureErasure.load),
    "sweep": (SWEEP, SweepReport.load),
    "owned": (OWNED, OwnershipReport.load),
}


def test_there_are_at_least_20_000_inputs_of_strangers():
    assert sum(INPUTS.values()) >= 20_000


EACH = told("documents") // (len(DOCUMENTS) + 2)  # of each kind; runs and known units are two more


def enough(record_property, read, refused):
    counted(record_property, "documents", EACH, read, refused)
    assert read > 30
    assert refused > 100


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_documents(tmp_path, record_property, kind):
    whole, load = DOCUMENTS[kind]
    path = tmp_path / "document.json"
    whole.save(path)

    def again(path):
        load(path).save(path)
        load(path)

    contents = map(str.encode, documents([json.loads(path.read_text())], EACH, 2))
    enough(record_property, *tried(path, contents, again, WatermarkGuardError))


def test_runs_of_earlier_releases(tmp_path, record_property):
    path = tmp_path / "document.json"
    write_json(path, [(REPORT, [])], 0.9)

    def load(path):
        assert all(isinstance(report, wm.ProbeReport) for report in read_release(path))

    contents = map(str.encode, documents([json.loads(path.read_text())], EACH, 3))
    enough(record_property, *tried(path, contents, load, WatermarkGuardError))


def test_known_units(tmp_path, record_property):
    path = tmp_path / "known.toml"
    until = datetime.date(2030, 1, 1)
    write_known(
        path,
        [
            KnownUnit("net", "ab", "logits", "latin", number, "a", 0.99, 0.95, until)
            for number in range(3)
        ],
    )

    def again(path):
        units = read_known(path)
        write_known(path, units)
        assert len(read_known(path)) == len(units)

    contents = mutants([path.read_bytes()], EACH, 4)
    enough(record_property, *tried(path, contents, again, WatermarkGuardError))


@pytest.mark.parametrize("load", [load for _, load in DOCUMENTS.values()] + [read_release])
def test_a_byte_order_mark_is_read(tmp_path, load):
    whole = next((document for document, known in DOCUMENTS.values() if known == load), REPORT)
    whole.save(tmp_path / "document.json")
    content = (tmp_path / "document.json").read_bytes()
    (tmp_path / "document.json").write_bytes(b"\xef\xbb\xbf" + content)
    load(tmp_path / "document.json")


def test_a_byte_order_mark_of_known_units_is_read(tmp_path):
    known = [
        KnownUnit("net", "ab", "logits", "latin", 0, "a", 0.99, 0.95, datetime.date(2030, 1, 1))
    ]
    write_known(tmp_path / "known.toml", known)
    content = (tmp_path / "known.toml").read_bytes()
    (tmp_path / "known.toml").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert read_known(tmp_path / "known.toml") == tuple(known)


class Fixed(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))[:, :2]


@settings(
    max_examples=told("names"),
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=st.tuples(*[st.text(st.characters(), max_size=30)] * 2))
def test_class_names(tmp_path, names):
    """Whatever classes are called, a report of them can be written, read and shown."""
    named, _ = unit_names({"logits": 2}, names, None)
    scores = wm.Scores(
        "logits", "latin", np.array([0.25, 0.99]), np.array([0.1, 0.01]), 9, named["logits"]
    )
    report = wm.ProbeReport("net", "9 photos", 9, 1, {("logits", "latin"): scores})
    report.save(tmp_path / "report.json")
    assert wm.ProbeReport.load(tmp_path / "report.json")["logits", "latin"].names == names
    report.to_html(tmp_path / "report.html")
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "</html>" in content[-20:]
    known = KnownUnit(
        "net", "ab", "logits", "latin", 0, names[0], 0.99, 0.95, datetime.date(2030, 1, 1)
    )
    write_known(tmp_path / "known.toml", [known])
    assert len(read_known(tmp_path / "known.toml")) == 1
