"""Tables that fit the terminal, rendered by rich."""

from __future__ import annotations

import io
import re
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
    """Draw texts and tables below each other, titles below an empty line; returns ended lines."""
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
        if isinstance(part, Table):
            # rich would wrap a title at the width of its table.
            if part.title:
                console.print()
                console.print(Text(str(part.title), style="italic"))
            part.title = None
        console.print(part, width=part.width if isinstance(part, Table) else None, crop=False)
        if isinstance(part, Table):
            console.print()
    text = "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip() + "\n"
    text = re.sub(r"\n{3,}", "\n\n", text.lstrip("\n"))
    text = inert(text)  # where a line is broken, the next one may begin with anything
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
    """Lay out a table; where the terminal is narrow, words are wrapped, then cut."""
    widths = [
        max(cell_len(row[index]) for row in (columns, *rows)) for index in range(len(columns))
    ]
    spare = style.width - sum(widths) - _GAP * (len(columns) - 1)
    # First between words, so that names stay whole; then inside of them.
    whole = {
        index: max(cell_len(word) for row in (columns, *rows) for word in row[index].split(" "))
        for index in words
    }
    for least in (whole, dict.fromkeys(words, _SHORTEST_WORD)):
        while spare < 0 and (wide := [i for i in words if widths[i] > least[i]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
            spare += 1
    rows = [
        [wrapped(cell, widths[index]) if index in words else cell for index, cell in enumerate(row)]
        for row in rows
    ]
    laid_out = Table(
        box=box.ASCII if style.ascii_only else box.SIMPLE_HEAD,
        title=title,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns):
        laid_out.add_column(
            wrapped(column, widths[index]) if index in words else column,
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


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Break text between words into lines of at most `width` columns, but for longer words.

    All lines but the first one begin with `indent`.
    """
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        if cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return "\n".join(lines)
