"""A search's finds as one picture: a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from pytest_watermark_guard.errors import ImagesError, SettingsError
from pytest_watermark_guard.images.baseline import open_baseline
from pytest_watermark_guard.reporting.text import printable

if TYPE_CHECKING:
    from pytest_watermark_guard.exploring.search import SearchReport

_SIDE, _GAP, _LINE = 160, 8, 14  # pixels
_ACROSS = 8
_FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def draw_gallery(found: SearchReport, path: Path, images: Any) -> None:
    """Draw the finds in rows, each above its score and the end of its name."""
    if path.suffix.lower() not in _FORMATS:
        raise SettingsError(f"gallery: {str(path)!r} must end in one of {', '.join(_FORMATS)}")
    baseline = open_baseline(images)
    places = {identity: place for place, identity in enumerate(baseline.identities)}
    across = min(_ACROSS, len(found.finds))
    wide, high = _SIDE + _GAP, _SIDE + 2 * _LINE + _GAP
    size = across * wide + _GAP, -(-len(found.finds) // across) * high + _GAP
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for index, find in enumerate(found.finds):
        if find.image not in places:
            raise ImagesError(
                f"gallery: {find.image!r} is not among the {baseline.description}; pass the images "
                "that were searched"
            )
        image, _ = baseline.load(places[find.image])
        image.thumbnail((_SIDE, _SIDE))
        left, top = _GAP + index % across * wide, _GAP + index // across * high
        spare = _SIDE - image.width, _SIDE - image.height
        sheet.paste(image, (left + spare[0] // 2, top + spare[1] // 2))
        label = f"{index + 1}: {find.score:.2f}"
        pen.text((left, top + _SIDE + 1), label, fill="black", font=font)
        name = _fitting(printable(find.image), font)
        pen.text((left, top + _SIDE + 1 + _LINE), name, fill="#444444", font=font)
    sheet.save(path)


def _fitting(name: str, font: Any) -> str:
    """Cut a name from the left: its end tells images of a folder apart."""
    # Glyphs are at least 2 px wide: no need to measure a name of thousands.
    short = name[-_SIDE // 2 :]
    while font.getlength(short) > _SIDE:
        short = "…" + short.lstrip("…")[1:]
    return short
