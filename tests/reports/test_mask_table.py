"""Golden texts: run with ``--update-golden`` to write them anew, then read the difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_watermark_guard.reports.mask_table import render_masks
from pytest_watermark_guard.reports.masked import Fall, Masked

GOLDEN = Path(__file__).parent / "golden"

MASK = Masked(
    test="tests/test_head.py::test_trained[resnet50]",
    fixture="backbone",
    model="ResNet",
    where="the output of 'avgpool'",
    method="mask",
    units=tuple(range(13)),
    directions=0,
    width=1280,
    falls=(Fall("chinese", 0.8804, 0.7012), Fall("arabic_numerals", 0.715, 0.68)),
    description="13 of 1280 features of ResNet: ...",
)
AGAIN = replace(MASK, test="tests/test_head.py::test_again")
ERASURE = replace(
    MASK,
    test="tests/test_head.py::TestErased::test_it",
    fixture="my_backbone_with_a_long_name",
    where="the input of 'head' and the input of 'head_dist'",
    method="erase",
    units=(),
    directions=2,
)
HOSTILE = replace(MASK, test="test.py::test_it[\x1b[2J[bold]x\n]", fixture="[red]a\x07")
MANY = [replace(MASK, test=f"test.py::test_it[{n:02}]") for n in range(13)]
CASES = {
    "masks-80": ([MASK, ERASURE, AGAIN], {"width": 80}),
    "masks-120": ([MASK, ERASURE, AGAIN], {"width": 120}),
    "masks-ascii-80": ([MASK, ERASURE], {"width": 80, "ascii_only": True}),
    "masks-many-80": (MANY, {"width": 80}),
    "masks-hostile-80": ([HOSTILE], {"width": 80}),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case, update_golden):
    masks, options = CASES[case]
    text = render_masks(masks, **options)
    path = GOLDEN / f"{case}.txt"
    if update_golden:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text("utf-8")
    assert max(map(len, text.splitlines())) <= options["width"]


def test_it_crosses_process_borders_as_text():
    for masked in (MASK, ERASURE, HOSTILE):
        assert Masked.from_json(masked.to_json()) == masked
