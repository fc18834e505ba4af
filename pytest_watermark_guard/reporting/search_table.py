"""A search's finds as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.reporting.drawing import Style, drawn, table
from pytest_watermark_guard.reporting.text import count, printable

if TYPE_CHECKING:
    from pytest_watermark_guard.exploring.search import SearchReport

_FOLDERS = 5


def render_search(
    found: SearchReport, *, width: int = 80, color: bool = False, ascii_only: bool = False
) -> str:
    """Draw the table of a search; returns lines, the last one ended."""
    style = Style(width, ascii_only)
    return drawn(_parts(found, style), style, color)


def _parts(found: SearchReport, style: Style) -> Iterator[RenderableType]:
    yield Text(f"{printable(found.model)}: images that react like marked ones", style="bold")
    where = sorted({f"{unit.layer} under {unit.scenario}" for unit in found.detectors})
    detectors = count(len(found.detectors), "unit")
    yield Text(printable(f"{found.images}; by {detectors} of {', '.join(where)}"))
    for note in found.notes:
        yield Text(f"Note: {printable(note)}.", style="yellow")
    rows = [
        (str(rank), f"{find.score:.2f}", printable(find.image))
        for rank, find in enumerate(found.finds, 1)
    ]
    yield Text()
    yield Text(f"The {len(rows)} highest of {count(found.n_images, 'image')}", style="italic")
    # A title of the table's own would be as narrow as it is.
    yield table(style, "", ("", "score", "image"), rows, words=(2,))
    folders = Counter(find.image.rpartition("/")[0] for find in found.finds)
    if len(folders) > 1:
        listed = ", ".join(
            f"{printable(folder or '.', 32)} {number}"
            for folder, number in folders.most_common(_FOLDERS)
        )
        yield Text(f"Most are in: {listed}.")
