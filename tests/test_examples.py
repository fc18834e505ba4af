"""The examples run as their texts say; the planted shortcut has a tox environment of its own."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import features

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.skipif(not features.check("raqm"), reason="this Pillow has no raqm")


def run_pytest(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done


def test_minimal():
    done = run_pytest(EXAMPLES / "minimal", "test_backbone.py", "-c", os.devnull)
    assert done.returncode == 0
    assert "1 passed" in done.stdout


def test_pre_release():
    text = (EXAMPLES / "pre_release" / "README.md").read_text("utf-8")
    command = re.search(r"pytest (--wm-model=\"[^\"]*@random[^\n]*)", text)
    assert command
    done = run_pytest(EXAMPLES / "pre_release", *shlex.split(command[1]))
    assert "64 images drawn from the 256 images of the built-in set" in done.stdout
    assert re.search(r"\d+ (passed|failed)", done.stdout)
    assert not re.search(r"\d errors?\b|^error", done.stdout.lower(), re.MULTILINE)


def test_head_training():
    folder = EXAMPLES / "head_training"
    commands = re.findall(
        r"^    pytest (-m .*?) +#", (folder / "README.md").read_text("utf-8"), re.M
    )
    plain, masked = (run_pytest(folder, *shlex.split(command)) for command in commands)
    assert plain.returncode == 1
    assert "1 failed, 1 deselected" in plain.stdout
    assert re.search(r"logits +carton \[2\] +chinese +fires on", plain.stdout)
    assert masked.returncode == 0
    assert "1 passed, 1 deselected" in masked.stdout


def test_ownership():
    done = run_pytest(EXAMPLES / "ownership", "--wm-report")
    assert done.returncode == 0
    assert "2 passed" in done.stdout
    assert "null: the" in done.stdout
    words = " ".join(done.stdout.split())
    assert "For comparison, the same test of the clean encoder gave a probability of" in words
