"""An empty picture to draw in, if matplotlib is there."""

from __future__ import annotations

from typing import Any

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


def shortened(name: str, width: int = 32) -> str:
    """Return text from outside as matplotlib can show it, of at most `width` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")
    return clean if len(clean) <= width else clean[: width - 1] + "…"
