"""A notebook's Markdown, its code, and what it printed, as one page of Markdown."""

from __future__ import annotations

import json


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
