"""What is imported for a gate is not collected over and over; what a caller has made is."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNTING = """
    import gc
    import weakref

    class Circle:
        pass

    circle = Circle()
    circle.itself = circle
    alive = weakref.ref(circle)
    del circle
    {before}

    def pytest_terminal_summary():
        print("FROZEN", gc.get_freeze_count(), "GARBAGE", alive() is not None)
"""


@pytest.mark.parametrize(
    ("before", "models", "frozen"),
    [
        ("", ["torchvision:resnet18@random"], True),
        ("", ["shop:blind"], True),
        ("", [], False),
        ("import torch", ["shop:blind"], False),
    ],
)
def test_only_what_a_gate_has_imported_is_left_out(project, before, models, frozen):
    project.makeconftest(COUNTING.format(before=before))
    project.makepyfile(test_other="def test_it(): pass")
    options = [f"--wm-model={model}" for model in models]
    result = project.runpytest_subprocess(*options, "test_other.py", "--wm-max-images=16")
    (told,) = [line.split() for line in result.outlines if line.startswith("FROZEN")]
    if frozen:
        assert int(told[1]) > 100_000
        assert told[3] == "False"
    else:
        assert int(told[1]) == 0


@pytest.mark.parametrize("library", ["no_such_library", "json"])
def test_without_torch_nothing_is(library):
    code = (
        "import contextlib, gc\n"
        "from pytest_watermark_guard.plugin.imports import imported_for_good\n"
        "with contextlib.suppress(ImportError), imported_for_good():\n"
        f"    import {library}\n"
        "print(gc.get_freeze_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
