"""A long probe says about how long it will take, once it knows, in a log too."""

from __future__ import annotations

import pytest

ALWAYS = """
from pytest_watermark_guard.probing import running

running._WORTH_SAYING = 0
"""


@pytest.fixture
def talkative(project):
    project.makeconftest(ALWAYS)
    return project


def test_a_gate_says_how_long_it_will_take(talkative):
    result = talkative.runpytest_subprocess(
        "--wm-model=shop:blind", "--wm-early-stop=0", "--wm-no-cache"
    )
    result.stdout.re_match_lines(
        [r"watermark guard: .*: 64 images, about \d+ s, or less if the verdict is clear"]
    )


@pytest.mark.parametrize("quietly", [("-q",), ("-n2",)])
def test_quiet_runs_and_workers_say_nothing(talkative, quietly):
    if quietly == ("-n2",):
        pytest.importorskip("xdist")
    result = talkative.runpytest_subprocess(
        "--wm-model=shop:blind", "--wm-early-stop=0", "--wm-no-cache", *quietly
    )
    result.assert_outcomes(passed=4)
    result.stdout.no_re_match_line(".*or less if the verdict is clear")
