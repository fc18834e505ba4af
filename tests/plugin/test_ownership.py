"""Ownership under pytest: the fixture, the option, and where verifications are told."""

from __future__ import annotations

import json
import sys

import pytest

MODULE = """
    import numpy as np
    import torch
    from torch import nn

    import pytest_watermark_guard as wm

    torch.manual_seed(0)
    NET = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    NET.preprocessing = wm.Preprocessing(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    PHOTOS = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    KEY = wm.ownership.generate_key(NET, PHOTOS, pairs=10, seed=1, steps=0)
"""
TESTS = """
    import release
    from pytest_watermark_guard import ownership

    def test_ours(wm_key):
        ownership.assert_no_watermark(
            release.NET, wm_key, images=release.PHOTOS, name="release", nulls={"twin": release.NET}
        )

    def test_not_there(wm_key):
        ownership.assert_carries_watermark(release.NET, wm_key, images=release.PHOTOS)
"""


@pytest.fixture
def project(pytester):
    pytester.syspathinsert()
    pytester.makepyfile(release=MODULE)
    pytester.makepyfile(TESTS)
    pytester.run(sys.executable, "-c", "import release; release.KEY.save('key.safetensors')")
    return pytester


@pytest.mark.parametrize("workers", [(), ("-n0",), ("-n2",), ("-p", "no:xdist")], ids=str)
def test_told_everywhere(project, workers):
    if workers[:1] == ("-n2",):
        pytest.importorskip("xdist")
    files = "--wm-key=key.safetensors", "--wm-json=wm.json", "--wm-html=wm.html"
    result = project.runpytest_subprocess(*workers, *files, "--wm-report")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines_random(
        [
            "*Sequential does not carry the key*",
            "Ownership",
            "*null: twin*",
            "The key * holds 10 pairs of patterns, and in each pair a *",
        ]
    )
    written = json.loads((project.path / "wm.json").read_text("utf-8"))
    found = {entry["model"]: entry for entry in written["ownership"]}
    assert set(found) == {"release", "Sequential"}
    assert found["release"]["p_value"] > 0.001
    page = (project.path / "wm.html").read_text("utf-8").replace("&#39;", "'")
    assert found["release"]["sentence"] in page
    assert "Ownership: 0 of 2 verifications show the key" in page


def test_the_ini_file_names_the_key(project):
    project.makeini("[pytest]\nwm_key = key.safetensors")
    result = project.runpytest_subprocess("-k", "ours")
    result.assert_outcomes(passed=1, deselected=1)


def test_no_key_and_no_such_file(project):
    result = project.runpytest_subprocess("-k", "ours")
    result.assert_outcomes(errors=1, deselected=1)
    result.stdout.fnmatch_lines(["*wm_key: no key was named; pass --wm-key=FILE, or set wm_key*"])
    result = project.runpytest_subprocess("-k", "ours", "--wm-key=none.safetensors")
    result.assert_outcomes(errors=1, deselected=1)
    result.stdout.fnmatch_lines(["*OwnershipError: cannot read*none.safetensors*"])
