"""The messages of the package's errors, read from its code."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "pytest_watermark_guard"


def error_names() -> list[str]:
    """Return the names of the package's errors."""
    tree = ast.parse((PACKAGE / "errors.py").read_text("utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef)]


def error_messages(name: str) -> list[str]:
    """Return the messages that an error is raised with; what is filled in is an ellipsis."""
    return sorted(message for message in _messages()[name] if message.strip("… :"))


@cache
def _messages() -> dict[str, set[str]]:
    """Return the messages by the name of their error."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            called = node.exc.func
            raised = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
            if node.exc.args:
                found[raised].add(" ".join(_text(node.exc.args[0]).split()))
    return found


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"
