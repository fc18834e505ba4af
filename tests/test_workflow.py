from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = (
    ".github/workflows/ci.yml",
    "examples/github_actions/watermark-guard.yml",
    "pytest_watermark_guard/plugin/starter_files/watermark-guard.yml",
)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_the_workflow_is_one_by_the_published_schema(workflow):
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command += ["vendor.github-workflows", str(ROOT / workflow)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
