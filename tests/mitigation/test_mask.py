"""Which units a mask takes, and how it is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import MaskError, SettingsError

A = {
    "chinese": [0.5, 0.9, 0.2, 0.6, 0.55],
    "latin": [0.5, 0.52, 0.5, 0.05, 0.5],
}


def report(areas=A, layer="features"):
    scores = {
        (layer, name): wm.Scores(
            layer, name, np.array(a), np.full(len(a), 0.01), 50, tuple(map(str, range(len(a))))
        )
        for name, a in areas.items()
    }
    return wm.ProbeReport("net", "50 photos", 50, 17, scores, weights="ab" * 32)


@pytest.mark.parametrize(
    ("rule", "units"),
    [
        ({"fraction": 0.2, "scenarios": ("chinese",)}, (1,)),
        ({"fraction": 0.4, "scenarios": "chinese"}, (1, 2)),
        ({"fraction": 0.21, "scenarios": ["chinese"]}, (1, 2)),  # rounded up
        ({"fraction": 0.4, "scenarios": ("latin",)}, (1, 3)),
        ({"fraction": 0.4}, (1, 3)),  # the larger d of both counts: 0.9 and 0.95
        ({"fraction": 0}, ()),
        ({"fraction": 1}, (0, 1, 2, 3, 4)),
        ({"threshold": 0.8}, (1, 2, 3)),
        ({"threshold": 0.8, "scenarios": ("chinese",)}, (1, 2)),
        ({"threshold": 0.99}, ()),
        ({"units": [4, 0]}, (0, 4)),
    ],
)
def test_the_rules(rule, units):
    mask = wm.FeatureMask.from_report(report(), **rule)
    assert mask.units == units
    assert mask.width == 5
    assert mask.weights == "ab" * 32


@given(st.integers(1, 4000), st.integers(0, 1000))
def test_a_fraction_is_rounded_up_to_whole_units(width, thousandths):
    d = {"latin": np.linspace(0.5, 1, width)}
    mask = wm.FeatureMask.from_report(report(d), fraction=thousandths / 1000)
    assert len(mask) == -(-width * thousandths // 1000)
    assert mask.units == tuple(range(width - len(mask), width))


def test_the_description_says_what_and_from_what():
    mask = wm.FeatureMask.from_report(report(), fraction=0.2, scenarios=("chinese",))
    assert mask.description == (
        "1 of 5 features of net: the 0.2 most differentiable under chinese, probed with 50 images "
        "(50 photos), seed 17"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of fraction=, threshold= and units="),
        ({"fraction": 0.1, "units": [1]}, "give one of"),
        ({"fraction": 1.5}, r"fraction must be a number in \[0, 1\], got 1.5"),
        ({"fraction": True}, "fraction must be"),
        ({"units": [5]}, "5 is no index of the 5 features"),
        ({"units": [-1]}, "-1 is no index"),
        ({"units": [1, 1]}, "named twice|each can be named once"),
        ({"fraction": 0.1, "scenarios": ("hindi",)}, "'hindi', but the report of net has chinese"),
        ({"fraction": 0.1, "scenarios": ()}, "no scenario, but the report"),
    ],
)
def test_wrong_rules(arguments, message):
    with pytest.raises(MaskError, match=message):
        wm.FeatureMask.from_report(report(), **arguments)


def test_a_wrong_threshold_is_the_gates_error():
    with pytest.raises(SettingsError, match="threshold"):
        wm.FeatureMask.from_report(report(), threshold=0.4)


def test_a_report_without_features():
    with pytest.raises(MaskError, match="has no layer 'features', only logits"):
        wm.FeatureMask.from_report(report(layer="logits"), fraction=0.1)


def test_saved_and_loaded(tmp_path):
    mask = wm.FeatureMask.from_report(report(), fraction=0.4)
    mask.save(tmp_path / "mask.json")
    assert wm.FeatureMask.load(tmp_path / "mask.json") == mask
    data = json.loads((tmp_path / "mask.json").read_text("utf-8"))
    assert data["format"] == "pytest-watermark-guard/mask"
    assert data["units"] == [1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "elsewhere"}, "is of format 'elsewhere'"),
        ({"kind": "erasure"}, "holds 'erasure'"),
        (
            {"format_version": 99},
            "its format_version is 99, which is newer than this version reads",
        ),
        ({"units": [7]}, "7 is no index of the 5 features"),
        ({"units": "x"}, "holds no mask"),
        ({"width": None}, "holds no mask"),
    ],
)
def test_files_that_hold_something_else(tmp_path, change, message):
    path = tmp_path / "mask.json"
    wm.FeatureMask.from_report(report(), fraction=0.4).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}))
    with pytest.raises(MaskError, match=message):
        wm.FeatureMask.load(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"format": 1}', b"[" * 9999])
def test_files_that_are_no_mask(tmp_path, content):
    path = tmp_path / "mask.json"
    path.write_bytes(content)
    with pytest.raises(MaskError, match="holds no mask"):
        wm.FeatureMask.load(path)
    with pytest.raises(MaskError, match="cannot read"):
        wm.FeatureMask.load(tmp_path / "none.json")


@given(st.lists(st.integers(0, 6), unique=True))
def test_zero_there_and_the_same_bits_elsewhere(units):
    mask = wm.FeatureMask(tuple(units), 7)
    features = torch.randn(3, 7)
    changed = mask.transform(features, mask.tensors())
    assert (changed[:, units] == 0).all()
    rest = [unit for unit in range(7) if unit not in units]
    assert torch.equal(changed[:, rest], features[:, rest])
