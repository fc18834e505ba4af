"""``--wm-against``: what is told of an earlier release, and the gate that holds a model to it."""

from __future__ import annotations

import json

import pytest

FADING = '''
import torch
from pathlib import Path
from torch import nn
import pytest_watermark_guard as wm

class Net(nn.Module):
    """Class 1 and feature 2 see the brightest pixel, ink on a dark photo, through a noise."""
    preprocessing = wm.Preprocessing(size=(32, 32), resize=32)

    def __init__(self, noise):
        super().__init__()
        self.fc = nn.Linear(3, 2, bias=False)
        self.noise = noise
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1., 0., 0.], [0., 0., 1.]]))

    def forward(self, x):
        means = x.mean((2, 3))
        brightest = x.amin(1).amax((1, 2))
        any_number = (x[:, 0, 0, :].sum(1) * 1e3).sin()  # another one for each image
        corner = x[:, 1, :5, :5].mean((1, 2))
        return self.fc(torch.stack([means[:, 0], corner, brightest + self.noise * any_number], 1))

def old():
    return Net(9.0)

def new():
    return Net(0.5)

class Wide(Net):
    def __init__(self):
        super().__init__(9.0)
        self.fc = nn.Linear(3, 5, bias=False)

def wide():
    return Wide()
'''
RUN = ("--wm-inconclusive=pass", "--wm-threshold=1", "--wm-scenarios=latin", "-Wignore")
FILE = ("--wm-json=v1.json", "--wm-early-stop=0", *RUN)
AGAINST = ("--wm-against=v1.json", *RUN)
SINCE = "watermark guard: fading:new against fading:old: of its units 2 rose beyond chance; *"


@pytest.fixture(scope="session")
def small_photos(tmp_path_factory):
    """Eighty dark photos."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for index in range(80):
        low = rng.integers(0, 60)
        pixels = rng.integers(low, low + 60, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture
def release(pytester, small_photos, monkeypatch):
    """A repository whose earlier release hardly reacts, and left a file."""
    for name in ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(fading=FADING)
    pytester.makeini(f"[pytest]\nwm_images = {small_photos}\npythonpath = .\n")
    result = pytester.runpytest("--wm-model=fading:old", *FILE)
    assert result.ret == 0
    return pytester


def test_a_line_for_each_model_and_no_verdict(release):
    result = release.runpytest("--wm-model=fading:new", *AGAINST)
    assert result.ret == 0
    result.stdout.fnmatch_lines([SINCE])
    result.stdout.no_fnmatch_line("*Units that changed beyond chance*")


def test_the_report_the_file_the_page_and_the_step_summary(release, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    files = "--wm-json=v2.json", "--wm-html=v2.html"
    result = release.runpytest("--wm-model=fading:new", *AGAINST, "--wm-report", *files)
    result.stdout.fnmatch_lines(
        [
            "Note: all images were used, for the comparison with v1.json.",
            "Units that changed beyond chance",
            "*logits *unit 1 *latin *rose *",
            "*features *unit 2 *latin *rose *",
        ]
    )
    (compared,) = json.loads((release.path / "v2.json").read_text("utf-8"))["comparisons"]
    assert {(unit["layer"], unit["index"]) for unit in compared["changes"]} == {
        ("logits", 1),
        ("features", 2),
    }
    for file in ("v2.html", "summary.md"):
        text = (release.path / file).read_text("utf-8")
        assert "Since the earlier release" in text
        assert "2 rose beyond chance" in text


def test_no_worse_fails_what_rose(release, distribution):
    result = release.runpytest("--wm-model=fading:new", "--wm-no-worse", *AGAINST, *distribution)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*fading:new is worse than the release before: 1 of 2 logits rose beyond chance, and "
            "reacts strongly now (d >= 0.8)*",
            "rose: logits unit 1, latin, d 0.9* (was 0.*)",
        ]
    )
    calm = release.runpytest("--wm-model=fading:old", "--wm-no-worse", *AGAINST, *distribution)
    calm.assert_outcomes(passed=2)
    calm.stdout.fnmatch_lines(["*no unit changed beyond chance*"])


def test_a_unit_that_is_allowed_may_rise(release):
    allow = "--wm-allow=logits:1=ticket 12", "--wm-allow=features:2=ticket 12"
    result = release.runpytest("--wm-model=fading:new", "--wm-no-worse", *allow, *AGAINST)
    result.assert_outcomes(passed=2)


def test_a_weak_reaction_may_rise(release):
    result = release.runpytest("--wm-model=fading:new", "--wm-no-worse", "--wm-warn=1", *AGAINST)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([SINCE])


def test_what_cannot_be_compared_is_not_checked(release):
    result = release.runpytest("--wm-model=fading:wide", "--wm-no-worse", *AGAINST)
    assert result.ret == 6
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*fading:wide could not be checked: whether logits under latin is no worse than in the "
            "release before cannot be told (2 units before, 5 after).",
            "watermark guard: fading:wide against fading:old: *"
            "(not compared: logits under latin (2 units before, 5 after)*",
        ]
    )


def test_in_a_test_by_the_ini_file_and_the_marker(release):
    with (release.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_against = v1.json\n")
    release.makepyfile(
        """
        import pytest
        import pytest_watermark_guard as wm
        from fading import new

        def test_told():
            wm.assert_not_watermark_sensitive(new())

        @pytest.mark.wm_settings(no_worse=True)
        def test_held():
            wm.assert_not_watermark_sensitive(new())

        def test_asked():
            wm.assert_not_watermark_sensitive(new(), no_worse=True)
        """
    )
    result = release.runpytest(*RUN)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["watermark guard: Net against fading:old: *2 rose beyond*"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--wm-no-worse"], "*no_worse: no worse than which release?*--wm-against=FILE"),
        (["--wm-against=missing.json"], "*cannot read probes*missing.json*"),
        (["--wm-against=fading.py"], "*fading.py*holds no probes*name a file that*"),
    ],
)
def test_wrong_options_are_usage_errors(release, options, message):
    result = release.runpytest("--wm-model=fading:new", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: watermark guard: {message}"])


def test_no_worse_than_nothing_is_said_before_the_probe(release):
    release.makepyfile(
        """
        import pytest
        import pytest_watermark_guard as wm
        from pytest_watermark_guard.errors import SettingsError

        def test_it():
            with pytest.raises(SettingsError, match="--wm-against"):
                wm.assert_not_watermark_sensitive("nosuch:model", no_worse=True)
        """
    )
    release.runpytest().assert_outcomes(passed=1)


def test_a_model_that_the_file_does_not_hold_is_compared_with_nothing(release):
    release.runpytest("--wm-model=fading:old", "--wm-model=fading:wide", *FILE)
    result = release.runpytest("--wm-model=fading:new", *AGAINST)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "watermark guard: fading:new is compared with nothing: v1.json: it holds probes of "
            "'fading:old' and 'fading:wide': none is of 'fading:new'"
        ]
    )


def test_a_comparison_is_told_once_and_made_once(release, monkeypatch):
    from pytest_watermark_guard.reports import releases

    made = []
    compare = releases.compare
    monkeypatch.setattr(releases, "compare", lambda *a, **k: made.append(a) or compare(*a, **k))
    options = ("--wm-model=fading:new", *AGAINST, "--wm-report", "--wm-json=v2.json")
    result = release.runpytest_inprocess(*options, "--wm-html=v2.html", "-p", "no:xdist")
    text = " ".join(result.stdout.str().split())
    assert text.count("fading:new against fading:old") == 1
    assert len(made) == 1
    page = (release.path / "v2.html").read_text("utf-8")
    assert "the units whose A changed beyond chance" in page
    assert '<td data-label="d">rose</td>' in page
