"""An empty picture to draw in, if matplotlib is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.errors import SettingsError

SHADES = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")
"""Of units by d, one for each of the tiers."""


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure of this size in inches, with no display needed.

    Raises
    ------
    SettingsError
        If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError(
            "a picture is drawn by matplotlib, which is not installed: "
            "pip install pytest-watermark-guard[plot]"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure to a file whose suffix says the format, PNG if it has none."""
    path = Path(path)
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:], dpi=150))


def shortened(name: str, width: int = 32) -> str:
    """Return text from outside as matplotlib can show it, of at most `width` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return clean if len(clean) <= width else clean[: width - 1] + "…"
