"""Notebooks as pages: their Markdown, their code, and what it printed."""

from __future__ import annotations

import json

from docutils.nodes import document
from myst_parser.parsers.sphinx_ import MystParser


def as_markdown(notebook: str) -> str:
    """Return the text of a notebook's cells, with code and printed text in fences."""
    return "\n\n".join(map(_cell, json.loads(notebook)["cells"]))


def _cell(cell: dict) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    printed = "".join("".join(output.get("text", [])) for output in cell["outputs"])
    parts = [f"```python\n{source}\n```"]
    if printed:
        parts.append(f"````text\n{printed.rstrip()}\n````")
    return "\n\n".join(parts)


class NotebookParser(MystParser):
    """Reads a notebook as the Markdown page that it stands for."""

    supported = ("ipynb",)

    def parse(self, inputstring: str, document: document) -> None:
        """Parse a notebook."""
        super().parse(as_markdown(inputstring), document)


def setup(app):
    """Have files of that suffix read."""
    app.add_source_suffix(".ipynb", "ipynb")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True}
