"""From an image file to RGB pixels of 8 bits, or to an `ImagesError` with the file's name."""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from pytest_watermark_guard.errors import ImagesError

# By content, whatever a file is called. Not among them is what Pillow hands on to other programs,
# such as EPS to Ghostscript.
_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF",
)  # fmt: skip
_ORIENTATION = 0x0112  # a tag of EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TOP_BIT = 2**15  # of 16 bits
_IGNORED = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def read_image(path: Path) -> Image.Image:
    """Read a file as an upright RGB image: it is turned as its EXIF orientation says."""
    check_regular(path)
    try:
        with _without_pillows_warnings(), Image.open(path, formats=_formats()) as image:
            deep = _has_16_bits(image)
            turn = _UPRIGHT.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            return _as_rgb(upright, str(path), deep, known_range=image.format == "PNG")
    except ImagesError:
        raise
    except Exception as error:  # decoders are an open set, and so is what they raise
        said = str(error) or type(error).__name__
        raise ImagesError(
            f"images: cannot read {str(path)!r}: {said}. Remove or replace the file; "
            "a probe leaves no image out by itself"
        ) from error


def check_regular(path: Path) -> None:
    """Raise `ImagesError` for what is no file: a pipe would be waited for, a device may not end."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise ImagesError(
            f"images: cannot read {str(path)!r}: {error.strerror}. Remove or replace the file"
        ) from error
    if not regular:
        raise ImagesError(f"images: {str(path)!r} is no regular file; remove or replace it")


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """Convert an image to 8-bit RGB without transparency; `ImagesError` if its range is unknown.

    Someone's object is taken as it is shown: it is not turned.
    """
    try:
        with _without_pillows_warnings():
            return _as_rgb(image, where, _has_16_bits(image), image.format == "PNG")
    except ImagesError:
        raise
    except Exception as error:  # a file that is read only now
        said = str(error) or type(error).__name__
        raise ImagesError(f"{where}: cannot be read: {said}") from error


def _as_rgb(image: Image.Image, where: str, deep: bool, known_range: bool) -> Image.Image:
    """Convert; `deep` are images of 16 bits, of mode "I" those whose range is known to be 16."""
    if image.mode == "F" or (image.mode == "I" and not known_range):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ImagesError(f"{where}: {kind} values have no known range; convert it to 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImagesError(f"{where}: 32-bit values have no known range; convert it to 8 bits")
        if high:  # black is black in every range
            _check_16_bits(high, where)
        # Pillow's own conversion would clip 16 bits to white.
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA"):  # first with its transparency, which may be one of many kinds
        image = image.convert("RGBA")
    converted = image.convert("RGB")
    if deep:  # Pillow kept the upper 8 of the 16 bits
        _check_16_bits(max(high for _, high in converted.getextrema()) << 8, where)  # type: ignore[misc]
    return converted


def _check_16_bits(high: int, where: str) -> None:
    """Refuse 8 to 15 bits in the place of 16: they would be shown nearly black."""
    if high < _TOP_BIT:
        raise ImagesError(
            f"{where}: its largest value is {high} of 65535: dark, or fewer than 16 bits in the "
            "place of 16, which cannot be told apart; convert it to 8 bits"
        )


def _has_16_bits(image: Image.Image) -> bool:
    """Tell 16 bits a channel, of which Pillow reads the upper 8; asked for before it reads them."""
    if image.format not in ("PNG", "TIFF"):
        return False
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(a, str) and ";16" in a for a in arguments):
            return True
    return False


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF says nothing, and the picture may be whole
        return 1


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _without_pillows_warnings() -> Iterator[None]:
    """Ignore what Pillow warns of: what it can read is read, the rest is an error with a name.

    For one thread among others, whose own filters stay: ``warnings.catch_warnings`` would put back
    the filters of all of them.
    """
    filters = cast("list[Any]", warnings.filters)
    filters.insert(0, _IGNORED)
    try:
        yield
    finally:
        with suppress(ValueError):  # somebody has reset all filters meanwhile
            filters.remove(_IGNORED)
