"""What was masked in a run's tests, for the terminal (``pytest --wm-report``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.reports.drawing import Style, rendered, table
from pytest_watermark_guard.reports.masked import Masked
from pytest_watermark_guard.reports.text import printable

MOST_TESTS = 10
_COLUMNS = ("fixture", "method", "taken out", "scenario", "max d", "after")


def render_masks(
    masks: Sequence[Masked], *, width: int = 80, color: bool = False, ascii_only: bool = False
) -> str:
    """Draw a table for every different mask, below the tests that had it."""
    style = Style(width, ascii_only)
    tests: dict[Masked, list[str]] = {}
    for mask in sorted(masks, key=lambda mask: mask.test):
        tests.setdefault(replace(mask, test=""), []).append(mask.test)
    parts: list[RenderableType] = [Text("Masked features\n", style="bold")]
    for mask, names in tests.items():
        parts += _mask(mask, names, style)
    return rendered(parts, style, color)


def _mask(mask: Masked, tests: Sequence[str], style: Style) -> Iterator[RenderableType]:
    for test in tests[:MOST_TESTS]:
        yield Text(printable(test))
    if len(tests) > MOST_TESTS:
        yield Text(f"... and {len(tests) - MOST_TESTS:,} more (--wm-json=FILE lists them all)")
    yield Text(printable(f"features of {mask.model}, changed at {mask.where}"))
    if mask.method == "mask":
        taken = f"{len(mask.units):,} of {mask.width:,} units"
    else:
        taken = f"{mask.directions:,} of {mask.width:,} dims"
    about = (printable(mask.fixture), mask.method, taken)
    rows = [
        (*about, printable(fall.scenario), f"{fall.before:.3f}", f"{fall.after:.3f}")
        for fall in mask.falls
    ]
    yield table(style, "", _COLUMNS, rows, words=(0, 1, 3))
