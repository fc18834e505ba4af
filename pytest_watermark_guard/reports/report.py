"""What every report can do: be printed, drawn, written to a page, and read as rows."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.reports.drawing import Style, rendered
from pytest_watermark_guard.reports.figure import save_figure
from pytest_watermark_guard.reports.names import printable

Row = dict[str, Any]
LINES = 9  # of a printed report, below which its methods are named
_ROWS = 8  # of a report in a notebook
_METHODS = ".table() .plot() .to_html(path) .to_dict() .to_frame()"


class Report:
    """Base of all reports; a report says what its lines, rows, tables, figure and data are."""

    def _lines(self) -> Iterator[str]:
        """Give a few lines that say what was found, the most important first."""
        raise NotImplementedError

    def _rows(self) -> Iterator[Row]:
        """Give what was found as rows of the same columns, the most important first."""
        raise NotImplementedError

    def _parts(self, style: Style) -> Iterator[RenderableType]:
        """Give texts and tables for a terminal."""
        raise NotImplementedError

    def _figure(self) -> Any:
        """Return what was found as a figure of matplotlib."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as a JSON file holds it."""
        raise NotImplementedError

    def table(self, width: int = 80, ascii_only: bool = False, color: bool = False) -> str:
        """Return the report as text for a terminal.

        Parameters
        ----------
        width, ascii_only, color
            What the terminal can show.
        """
        return rendered(self._parts(Style(width, ascii_only)), Style(width, ascii_only), color)

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the report; needs matplotlib.

        Parameters
        ----------
        path : str or Path, optional
            A picture to write (PNG, PDF or SVG).

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        SettingsError
            If matplotlib is missing.
        """
        return saved(self._figure(), path)

    def to_html(self, path: str | Path) -> None:
        """Write the report to one HTML file that opens offline."""
        from pytest_watermark_guard.reports.html.page import write_report

        write_report(path, self)

    def to_frame(self) -> Any:
        """Return the report as a pandas DataFrame, a row for each thing that was found.

        Raises
        ------
        SettingsError
            If pandas is missing.
        """
        try:
            import pandas
        except ImportError as error:
            raise SettingsError(
                "to_frame gives a DataFrame of pandas, which is not installed: pip install "
                "pandas; to_dict() gives plain data"
            ) from error
        return pandas.DataFrame(list(self._rows()))

    def __repr__(self) -> str:
        lines = list(map(printable, self._lines()))
        shown = lines if len(lines) <= LINES else [*lines[: LINES - 1], "..."]
        first, *rest = shown
        return "\n".join([f"{type(self).__name__}: {first}", *(f"  {r}" for r in rest), _METHODS])

    def _repr_html_(self) -> str:
        first, *rest = self._lines()
        rows = [row for row, _ in zip(self._rows(), range(_ROWS), strict=False)]
        lines = "".join(f"<br>{escape(line)}" for line in ([] if rows else rest))
        text = f"<p><b>{escape(type(self).__name__)}</b>: {escape(first)}{lines}</p>"
        if not rows:
            return text
        head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell_text(v))}</td>' for v in row.values())}</tr>"
            for row in rows
        )
        return f"{text}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def saved(figure: Any, path: str | Path | None) -> Any:
    """Write a figure, if there is a path, and return it."""
    if path is not None:
        save_figure(figure, path)
    return figure


def cell_text(value: Any) -> str:
    """Write a value of a row shortly."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"
