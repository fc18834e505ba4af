"""README and docs as data: their code blocks, links and words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from notebook_text import as_markdown

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("examples/*/README.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").glob("*.ipynb"),
    )
    if "_build" not in path.parts
)
_NOT_RUN = re.compile(r"<!-- not run: \S.* -->\s*")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    code: str
    line: int  # where it begins
    is_run: bool  # whether no comment above it says why not


def text_of(page: Path) -> str:
    """Return a page's Markdown; of a notebook, that of its cells."""
    text = (ROOT / page).read_text("utf-8")
    return as_markdown(text) if page.suffix == ".ipynb" else text


def blocks_of(page: Path) -> Iterator[Block]:
    """Give a page's fenced blocks, those in lists too."""
    before: Token | None = None
    for token in MarkdownIt().parse(text_of(page)):
        if token.type == "fence":
            said = before is not None and before.type == "html_block"
            is_run = not (said and _NOT_RUN.fullmatch(before.content))
            yield Block(token.info.strip(), token.content, token.map[0] + 1, is_run)
        if token.type == "code_block":
            yield Block("indented", token.content, token.map[0] + 1, True)
        before = token


def links_of(page: Path) -> Iterator[str]:
    """Give the targets of a page's links and pictures."""
    for token in MarkdownIt().parse(text_of(page)):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield str(target)


def anchors_of(page: Path) -> set[str]:
    """Return what can follow ``#`` in a link to the page: its headings, as forges write them."""
    tokens = MarkdownIt().parse(text_of(page))
    headings = [
        tokens[index + 1].content
        for index, token in enumerate(tokens)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
