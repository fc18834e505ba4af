"""Tables that fit the terminal, rendered by rich."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from pytest_watermark_guard.reports.log_lines import inert

_GAP = 2  # columns between cells
_SHORTEST_WORD = 8


class Style(NamedTuple):
    """What the terminal can show: its columns, and whether it lacks box-drawing characters."""

    width: int = 80
    ascii_only: bool = False


def rendered(parts: Iterable[RenderableType], style: Style, color: bool = False) -> str:
    """Draw texts and tables below each other; returns lines, the last one ended."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=style.width,
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        emoji=False,
        markup=False,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part, width=part.width if isinstance(part, Table) else None, crop=False)
    # Where a line is broken, the next one may begin with anything.
    text = inert("\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n")
    # One character for another, so that columns stay in line.
    return text.replace("…", ".").encode("ascii", "replace").decode() if style.ascii_only else text


def table(
    style: Style,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[int],
    red: Sequence[bool] = (),
) -> Table:
    """Lay out a table; where the terminal is narrow, words are cut and figures are not."""
    widths = [
        max(cell_len(row[index]) for row in (columns, *rows)) for index in range(len(columns))
    ]
    spare = style.width - sum(widths) - _GAP * (len(columns) + 1)
    while spare < 0 and max(widths[index] for index in words) > _SHORTEST_WORD:
        longest = max(words, key=widths.__getitem__)
        widths[longest] -= 1
        spare += 1
    laid_out = Table(
        box=box.ASCII if style.ascii_only else box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        laid_out.add_column(
            column,
            justify="left" if index in words else "right",
            overflow="ellipsis",
            no_wrap=True,
            width=widths[index],
        )
    # A table that is still too wide gets its full width: rich would leave out columns.
    laid_out.width = style.width - spare
    for index, row in enumerate(rows):
        laid_out.add_row(*map(Text, row), style="red" if red and red[index] else None)
    return laid_out
