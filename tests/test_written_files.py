"""Every kind of file is written as a whole or not at all, with the mode of an ordinary file."""

from __future__ import annotations

import datetime
import json
import os
import stat
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from small_reports import ERASURE, KEY, OWNED, REPORT, SEARCH, SURFACE, SURVEY, SWEEP

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import WatermarkGuardError
from pytest_watermark_guard.mitigation.sweep_report import SweepReport
from pytest_watermark_guard.ownership import OwnershipKey, OwnershipReport
from pytest_watermark_guard.ownership.checkpoint import Checkpoint
from pytest_watermark_guard.plugin.known_units_file import read_known, write_known
from pytest_watermark_guard.reports.json_file import write_json
from pytest_watermark_guard.reports.known_units import KnownUnit

resource = pytest.importorskip("resource", reason="needs POSIX")

KNOWN = KnownUnit("net", "ab", "logits", "latin", 0, "a", 0.99, 0.95, datetime.date(2030, 1, 1))
IMAGES = np.zeros((1, 8, 8, 3), dtype=np.uint8)

WRITERS = {
    "report.json": REPORT.save,
    "report.html": REPORT.to_html,
    "run.json": lambda path: write_json(path, [(REPORT, [])], 0.95, owned=[OWNED]),
    "survey.json": SURVEY.save,
    "survey.html": SURVEY.to_html,
    "survey.png": lambda path: SURVEY.plot(path, "latin"),
    "survey.pdf": lambda path: SURVEY.plot(path, "latin"),
    "surface.json": SURFACE.save,
    "surface.svg": SURFACE.plot,
    "search.json": SEARCH.save,
    "search.png": lambda path: SEARCH.gallery(path, IMAGES),
    "sweep.json": SWEEP.save,
    "sweep.png": SWEEP.plot,
    "ownership.json": OWNED.save,
    "mask.json": wm.FeatureMask((1,), 4).save,
    "erasure.json": ERASURE.save,
    "key.safetensors": KEY.save,
    "checkpoint.pt": lambda path: Checkpoint(path, {"key": "ab"}).write({"taken": 1}),
    "known.toml": lambda path: write_known(path, [KNOWN]),
}
READERS = {
    "report.json": wm.ProbeReport.load,
    "survey.json": wm.SurveyReport.load,
    "surface.json": wm.SurfaceReport.load,
    "search.json": wm.SearchReport.load,
    "sweep.json": SweepReport.load,
    "ownership.json": OwnershipReport.load,
    "mask.json": wm.FeatureMask.load,
    "erasure.json": wm.FeatureErasure.load,
    "key.safetensors": OwnershipKey.load,
    "checkpoint.pt": lambda path: Checkpoint(path, {"key": "ab"}).read(),
    "known.toml": read_known,
}
NEEDS_MATPLOTLIB = {"survey.png", "survey.pdf", "surface.svg", "sweep.png"}


@pytest.fixture(params=WRITERS)
def name(request):
    if request.param in NEEDS_MATPLOTLIB:
        pytest.importorskip("matplotlib")
    return request.param


@contextmanager
def full_disk():
    """Let no file grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("old", [None, b"what was there before"])
def test_an_error_in_the_middle_leaves_what_was_there(name, old, tmp_path):
    if old is not None:
        (tmp_path / name).write_bytes(old)
    WRITERS[name](tmp_path / "warmed up" / name)  # imports and font caches write files too
    with pytest.raises((OSError, WatermarkGuardError)), full_disk():
        WRITERS[name](tmp_path / name)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert left == ({} if old is None else {name: old})


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_mode_follows_the_umask(name, mask, tmp_path):
    old = os.umask(mask)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(old)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("name", READERS)
def test_what_is_written_can_be_read(name, tmp_path):
    WRITERS[name](tmp_path / name)
    assert READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".json")])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, r"'.*' holds no .*: it is of format 'x', not 'pytest-.*'; name another"),
        (
            {"format_version": 2},
            r"cannot read .* '.*': its format_version is 2, .*; upgrade pytest",
        ),
        ({"format_version": True}, r"'.*' holds no .*: its format_version is True, and no whole"),
        ({"format_version": None}, r"'.*' holds no .*: its format_version is None, and no whole"),
    ],
)
def test_one_rule_for_formats_and_versions(name, change, message, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(WatermarkGuardError, match=message):
        READERS[name](path)
    with pytest.raises(WatermarkGuardError, match=r"cannot read .* '.*none': No such file"):
        READERS[name](tmp_path / "none")


def test_a_newer_key_and_checkpoint_are_refused_alike(tmp_path):
    from safetensors.torch import load_file, save_file

    KEY.save(tmp_path / "key")
    metadata = {"format": "pytest-watermark-guard/ownership-key", "format_version": "3"}
    save_file(load_file(tmp_path / "key"), tmp_path / "key", metadata)
    Checkpoint(tmp_path / "state", {}).write({})
    data = torch.load(tmp_path / "state", weights_only=True)
    torch.save({**data, "format_version": 2}, tmp_path / "state")
    message = r"cannot read .* its format_version is [23], which is newer .*; upgrade pytest"
    with pytest.raises(WatermarkGuardError, match=message):
        OwnershipKey.load(tmp_path / "key")
    with pytest.raises(WatermarkGuardError, match=message):
        Checkpoint(tmp_path / "state", {}).read()


def test_checkpoints_of_earlier_versions_name_no_format_and_are_read(tmp_path):
    torch.save({"training": {"key": "ab"}, "state": {"taken": 1}}, tmp_path / "state")
    assert Checkpoint(tmp_path / "state", {"key": "ab"}).read() == {"taken": 1}
