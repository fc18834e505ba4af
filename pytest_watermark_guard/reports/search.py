"""What a search found: its data, its table and its contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.errors import ImagesError, SettingsError
from pytest_watermark_guard.images.baseline import open_baseline
from pytest_watermark_guard.reports.documents import DocumentFormat, number
from pytest_watermark_guard.reports.drawing import Style, table
from pytest_watermark_guard.reports.figure import (
    ALERT,
    LINE,
    SHADES,
    legend_below,
    new_figure,
    shortened,
)
from pytest_watermark_guard.reports.report import Report, Row
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.text import count, printable

FORMAT = DocumentFormat("search", "search")


class Find(NamedTuple):
    """One image that the detectors react to."""

    image: str  # its path within the folder, or its index
    score: float  # mean reaction of the detectors, in standard deviations over all images searched


@dataclass(frozen=True, repr=False)
class SearchReport(Report):
    """The images that a model's watermark detectors react to most.

    Attributes
    ----------
    model : str
    images : str
        What was searched.
    n_images : int
    detectors : tuple of SensitiveUnit
        The units that ranked them.
    finds : tuple of Find
        Highest score first.
    notes : tuple of str
        What was assumed, guessed or left out.
    cutoff : float or None
        The score that about one image in two searches would reach if none had a mark, as far as
        the spread of most of the images tells; None in reports of versions without it.
    """

    model: str
    images: str
    n_images: int
    detectors: tuple[SensitiveUnit, ...]
    finds: tuple[Find, ...]
    notes: tuple[str, ...] = ()
    cutoff: float | None = None

    @property
    def standing_out(self) -> int:
        """How many finds have a score from `cutoff` on; all of them where there is none."""
        scores = [find.score for find in self.finds]
        return sum(self.cutoff is None or score >= self.cutoff for score in scores)

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}: the {len(self.finds)} highest of {count(self.n_images, 'image')}"
        if self.cutoff is not None:
            yield f"{count(self.standing_out, 'image')} from the cut-off {self.cutoff:.2f} on"
        yield from (f"{find.score:.2f}  {find.image}" for find in self.finds[:5])

    def _rows(self) -> Iterator[Row]:
        for rank, find in enumerate(self.finds, 1):
            out = None if self.cutoff is None else find.score >= self.cutoff
            yield {"rank": rank, "score": find.score, "image": find.image, "stands out": out}

    def _parts(self, style: Style) -> Iterator[RenderableType]:
        return _parts(self, style)

    def _figure(self) -> Any:
        figure = new_figure(6.4, 3.6)
        axis = figure.subplots()
        scores = [find.score for find in self.finds]
        axis.plot(range(1, len(scores) + 1), scores, ".", color=SHADES[2], label="one image")
        if self.cutoff is not None:
            label = f"cut-off {self.cutoff:.2f}: what lies below may be chance"
            axis.axhline(self.cutoff, color=LINE, linestyle="--", label=label)
        axis.set_xlabel("rank")
        axis.set_ylabel("score, in standard deviations")
        axis.set_title(f"{shortened(self.model)}: images that react like marked ones", fontsize=10)
        legend_below(figure, [axis])
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def gallery(self, path: str | Path, images: Any) -> None:
        """Draw the finds onto one contact sheet (PNG, JPEG or WebP), with names and scores.

        Parameters
        ----------
        path : str or path
        images : folder, Dataset, array, tensor or sequence
            What was searched: a report holds no pictures.

        Raises
        ------
        ImagesError
            If a find is not among the images, or cannot be read.
        SettingsError
            If the suffix is none of the three.
        """
        draw_gallery(self, Path(path), images)

    def save(self, path: str | Path) -> None:
        """Write the report to a JSON file."""
        FORMAT.write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SearchReport:
        """Read a report that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with FORMAT.reading_json(path) as data:
            return cls(
                str(data["model"]),
                str(data["images"]),
                int(data["n_images"]),
                tuple(map(SensitiveUnit.from_dict, data["detectors"])),
                tuple(Find(str(image), number(score)) for image, score in data["finds"]),
                tuple(map(str, data["notes"])),
                None if (cutoff := data.get("cutoff")) is None else number(cutoff),
            )


_FOLDERS = 5


def _parts(report: SearchReport, style: Style) -> Iterator[RenderableType]:
    yield Text(f"{printable(report.model)}: images that react like marked ones", style="bold")
    where = sorted({f"{unit.layer} under {unit.scenario}" for unit in report.detectors})
    detectors = count(len(report.detectors), "unit")
    yield Text(printable(f"{report.images}; by {detectors} of {', '.join(where)}"))
    for note in report.notes:
        yield Text(f"Note: {printable(note)}.", style="yellow")
    rows = [
        (str(rank), f"{find.score:.2f}", printable(find.image))
        for rank, find in enumerate(report.finds, 1)
    ]
    title = f"The {len(rows)} highest of {count(report.n_images, 'image')}"
    yield table(style, title, ("", "score", "image"), rows, words=(2,))
    if report.cutoff is not None:
        yield Text(
            f"{count(report.standing_out, 'image')} from the cut-off {report.cutoff:.2f} on; "
            "what lies below may be chance."
        )
    folders = Counter(find.image.rpartition("/")[0] for find in report.finds)
    if len(folders) > 1:
        listed = ", ".join(
            f"{printable(folder or '.', 32)} {number}"
            for folder, number in folders.most_common(_FOLDERS)
        )
        yield Text(f"Most are in: {listed}.")


_SIDE, _GAP, _LINE = 160, 8, 14  # pixels
_ACROSS = 8
_DIVIDER, _NOTE = 26, 240  # height of the line and its words, and their width
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def draw_gallery(report: SearchReport, path: Path, images: Any) -> None:
    """Draw the finds in rows, each above its score and the end of its name."""
    image_format = _FORMATS.get(path.suffix.lower())
    if image_format is None:
        raise SettingsError(f"gallery: {str(path)!r} must end in one of {', '.join(_FORMATS)}")
    baseline = open_baseline(images)
    places = {identity: place for place, identity in enumerate(baseline.identities)}
    across = min(_ACROSS, len(report.finds))
    wide, high = _SIDE + _GAP, _SIDE + 2 * _LINE + _GAP
    above = report.standing_out
    rows_above = -(-above // across)
    rows = rows_above + -(-(len(report.finds) - above) // across)
    # Below a line: what does not reach the cut-off.
    divided = above < len(report.finds)
    size = max(across * wide, _NOTE * divided) + _GAP, rows * high + _DIVIDER * divided + _GAP
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for index, find in enumerate(report.finds):
        if find.image not in places:
            raise ImagesError(
                f"gallery: {find.image!r} is not among the {baseline.description}; pass the images "
                "that were searched"
            )
        image, _ = baseline.load(places[find.image])
        image.thumbnail((_SIDE, _SIDE))
        place = index if index < above else index - above
        left, top = _GAP + place % across * wide, _GAP + place // across * high
        if index >= above:
            top += rows_above * high + _DIVIDER
        spare = _SIDE - image.width, _SIDE - image.height
        sheet.paste(image, (left + spare[0] // 2, top + spare[1] // 2))
        label = f"{index + 1}: {find.score:.2f}"
        pen.text((left, top + _SIDE + 1), label, fill="black", font=font)
        name = _fitting(printable(find.image), font)
        pen.text((left, top + _SIDE + 1 + _LINE), name, fill="#444444", font=font)
    if divided:
        height = rows_above * high + _GAP
        pen.line((_GAP, height, size[0] - _GAP, height), fill=ALERT, width=2)
        words = f"below the cut-off {report.cutoff:.2f}: may be chance"
        pen.text((_GAP, height + 4), words, fill=ALERT, font=font)
    write_atomically(path, lambda file: sheet.save(file, image_format))


def _fitting(name: str, font: Any) -> str:
    """Cut a name from the left: its end tells images of a folder apart."""
    # Glyphs are at least 2 pixels wide, so a longer end of the name never fits.
    short = name[-_SIDE // 2 :]
    while font.getlength(short) > _SIDE:
        short = "…" + short.lstrip("…")[1:]
    return short
