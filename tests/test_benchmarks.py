"""Benchmarks are found by name; what they measure is not tested."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(*arguments):
    command = [sys.executable, str(FOLDER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_by_name_with_options():
    done = run("startup", "--help")
    assert done.returncode == 0
    assert "--rounds" in done.stdout


def test_unknown():
    done = run("../setup")
    assert done.returncode == 1
    assert "no benchmark '../setup'; there are auroc, claims, cold_gate, coverage" in done.stderr
