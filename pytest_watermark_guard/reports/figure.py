"""What the figures have in common: an empty picture, its colours, names and file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.reports.names import printable

INK, LINE, ALERT = "#24292f", "#8c959f", "#b3261e"
SHADES = ("#b6d7ee", "#6aaed6", "#2171b5", "#0b3d73")
"""Of units by d, one for each of the tiers."""


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure of this size in inches, with no display needed.

    Raises `SettingsError` if matplotlib is missing.
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


def legend_below(figure: Any, axes: Sequence[Any], across: int = 4) -> None:
    """Explain the colours of some panels in one legend, below them and off the data."""
    labelled: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    if labelled:
        figure.legend(
            labelled.values(),
            labelled.keys(),
            loc="outside lower center",
            ncols=min(across, len(labelled)),
            fontsize=8,
            frameon=False,
        )


def shortened(name: str, width: int = 32) -> str:
    """Return text from outside as matplotlib can show it, of about `width` characters."""
    return printable(name, width).replace("$", r"\$")  # else it would begin a formula


def name_rows(axis: Any, names: Sequence[str], width: int = 24, least: int = 0) -> None:
    """Name the rows 0, 1, ... of a panel, the first one on top, and leave room for `least`."""
    axis.set_yticks(range(len(names)), [shortened(name, width) for name in names])
    axis.tick_params(axis="y", length=0, labelsize=8)
    axis.set_ylim(max(len(names), least) - 0.4, -0.6)
