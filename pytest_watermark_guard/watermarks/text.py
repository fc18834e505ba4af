"""Strings into alpha masks, with Pillow."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ImageColor, ImageFont, features

from pytest_watermark_guard.errors import ScenarioError, did_you_mean
from pytest_watermark_guard.watermarks.draw import Draw
from pytest_watermark_guard.watermarks.scenarios import FONTS, Scenario
from pytest_watermark_guard.watermarks.typesetting import Typesetter

REFERENCE_SIDE = 224
"""Font sizes are given for an image whose shorter side has this many pixels."""

# Blocks whose letters join, reorder or stack without carrying a combining mark themselves.
_SHAPED_BLOCKS = ((0x0590, 0x08FF), (0x0900, 0x109F), (0x1780, 0x18AF), (0xA800, 0xAAFF))


@dataclass(frozen=True)
class Mark:
    """A watermark as pixels: where its ink is, and how opaque."""

    # [h, w]. A string's is cropped to the ink; its control's has the same shape.
    alpha: npt.NDArray[np.uint8]
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the mask covers."""
        height, width = self.alpha.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class Renderer:
    """Draws a scenario's strings for images of one size in pixels.

    Raises `ScenarioError` if the font cannot be read or lacks a symbol, if the script needs shaping
    and Pillow has no raqm, or if the colour is unknown.
    """

    def __init__(self, scenario: Scenario, height: int, width: int) -> None:
        self._scenario = scenario
        self._height = height
        self._width = width
        self._size = scenario.size * min(height, width) / REFERENCE_SIDE
        self._typesetter = Typesetter(_load_font(scenario, self._size))
        _check_glyphs(scenario)
        self._thinned = np.rint(np.arange(256) * scenario.opacity).astype(np.uint8)
        self.color = parse_color(scenario)

    def render(self, draw: Draw) -> Mark:
        """Render one draw, all its ink inside the image; `ScenarioError` if that cannot be."""
        alpha = self._ink(draw.text)
        rows, columns = self._height - alpha.shape[0] + 1, self._width - alpha.shape[1] + 1
        if rows < 1 or columns < 1:
            raise ScenarioError(
                f"scenario {self._scenario.name!r}: {draw.text!r} at font size {self._size:g} is "
                f"{alpha.shape[1]}x{alpha.shape[0]} px and does not fit an image of "
                f"{self._width}x{self._height} px; lower size or length"
            )
        return Mark(alpha, top=int(draw.down * rows), left=int(draw.across * columns))

    def _ink(self, text: str) -> npt.NDArray[np.uint8]:
        alpha = self._typesetter.ink(text)
        if alpha is None:
            raise ScenarioError(
                f"scenario {self._scenario.name!r}: {text!r} leaves no ink at font size "
                f"{self._size:g}; raise size"
            )
        if self._scenario.opacity < 1:
            alpha = self._thinned[alpha]
            if not alpha.any():
                raise ScenarioError(
                    f"scenario {self._scenario.name!r}: at opacity {self._scenario.opacity:g} no "
                    "pixel changes; raise it"
                )
        return alpha


def needs_shaping(text: str) -> bool:
    """Tell whether the characters join, reorder or run right to left, so that raqm is needed."""
    return any(
        unicodedata.category(character) in ("Mn", "Mc")
        or unicodedata.bidirectional(character) in ("R", "AL")
        or any(first <= ord(character) <= last for first, last in _SHAPED_BLOCKS)
        for character in text
    )


def font_path(scenario: Scenario) -> Path:
    """Return the file of the scenario's font, be it the package's or the user's."""
    return FONTS.get(scenario.font, Path(scenario.font))


def parse_color(scenario: Scenario) -> tuple[int, int, int]:
    """Return the scenario's colour as (R, G, B), 0 to 255."""
    try:
        color = scenario.color
        red, green, blue = (ImageColor.getrgb(color) if isinstance(color, str) else color)[:3]
        rgb = int(red), int(green), int(blue)
        if not all(0 <= channel <= 255 for channel in rgb):
            raise ValueError("channels must be in 0 to 255")
    except (ValueError, TypeError) as error:
        raise ScenarioError(
            f"scenario {scenario.name!r}: color {scenario.color!r} is neither a name that Pillow "
            f"knows nor #rrggbb nor (R, G, B): {error}"
        ) from error
    return rgb


def _load_font(scenario: Scenario, size: float) -> ImageFont.FreeTypeFont:
    shaped = needs_shaping("".join(scenario.alphabet))
    if shaped and not features.check("raqm"):
        raise ScenarioError(
            f"scenario {scenario.name!r} needs text shaping, and this Pillow has no raqm (its "
            "wheels carry it, but load FriBiDi from the system: `apt-get install libfribidi0` or "
            "`brew install fribidi`); install it, or leave this scenario out"
        )
    # The basic layout elsewhere: the same pixels whether or not raqm is there.
    engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    try:
        return ImageFont.truetype(str(font_path(scenario)), size, layout_engine=engine)
    except OSError as error:
        raise ScenarioError(
            f"scenario {scenario.name!r}: font {scenario.font!r} is neither a font of the package "
            f"({', '.join(FONTS)}) nor a readable font file: {error}"
            f"{did_you_mean(scenario.font, FONTS)}"
        ) from error


@lru_cache(maxsize=64)
def _check_glyphs(scenario: Scenario) -> None:
    """Raise if the font shows a symbol as the box that stands for a missing glyph."""
    font = _load_font(scenario, REFERENCE_SIDE)
    # U+10FFFF is a noncharacter: whatever is drawn for it is the missing glyph.
    width, box = font.getlength("\U0010ffff"), font.getmask("\U0010ffff")

    def is_box(character: str) -> bool:
        # By its width too: where the missing glyph is blank, a space must differ from it.
        if font.getlength(character) != width:
            return False
        mask = font.getmask(character)
        return mask.size == box.size and bytes(mask) == bytes(box)

    missing = sorted(c for c in set("".join(scenario.alphabet)) if is_box(c))
    if missing:
        shown = " ".join(f"{character} (U+{ord(character):04X})" for character in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ScenarioError(
            f"scenario {scenario.name!r}: font {scenario.font!r} has no glyph for {shown}{more}; "
            "pass font= a file that has them"
        )
