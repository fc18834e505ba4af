"""Notebooks as pages."""

from __future__ import annotations

from docutils.nodes import document
from myst_parser.parsers.sphinx_ import MystParser
from notebook_text import as_markdown


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
