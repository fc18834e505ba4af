"""A string's ink, exactly as Pillow draws it, at a fraction of the price."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont

# The built-in scripts need 20 characters and 400 pairs; a large alphabet evicts and stays right.
_GLYPHS, _PAIRS = 256, 4096


@dataclass(frozen=True)
class Ink:
    """What a string leaves on the page."""

    alpha: npt.NDArray[np.uint8]  # [h, w], cropped: no outer row or column is empty
    left: int  # of the first column, from the pen's start on the baseline
    top: int


def draw_whole(font: ImageFont.FreeTypeFont, text: str) -> Ink | None:
    """Let Pillow draw the whole string; None if it leaves no ink."""
    mask, (left, top) = font.getmask2(text, mode="L", anchor="ls")
    if (box := mask.getbbox()) is None:
        return None
    page = Image.new("L", mask.size)
    # Image.paste takes Pillow's inner image as it takes a colour, only its annotation says no.
    page.paste(cast(Any, mask), (0, 0, *mask.size))
    return Ink(np.asarray(page.crop(box)), left + box[0], top + box[1])


class Typesetter:
    """Sets strings from glyphs that were drawn once.

    Pillow's basic layout looks at one character, and at its predecessor for kerning; the pen moves
    in 1/64 px, and a glyph goes to the nearest pixel. So what is right for each pair is right for
    the string. That is not taken on trust: a string with a pair not seen before is drawn whole, and
    its pairs count as seen once the glyphs gave the same pixels. Strings whose glyphs overlap, and
    those of any other layout, are always drawn whole.
    """

    def __init__(self, font: ImageFont.FreeTypeFont) -> None:
        self._font = font
        self._glyph = lru_cache(_GLYPHS)(partial(draw_whole, font))
        self._step = lru_cache(_PAIRS)(self._measure_step)
        self._seen: set[str] = set()

    def ink(self, text: str) -> npt.NDArray[np.uint8] | None:
        """Return a string's alpha, uint8 [h, w], cropped to the ink; None if there is none."""
        alpha = None
        pairs = [first + second for first, second in pairwise(text)]
        if self._font.layout_engine == ImageFont.Layout.BASIC:
            alpha = self._join(text, pairs)
            if alpha is not None and self._seen.issuperset(pairs):
                return alpha
        whole = draw_whole(self._font, text)
        if whole is None:
            return None
        if alpha is not None and np.array_equal(alpha, whole.alpha):
            if len(self._seen) > _PAIRS:
                self._seen.clear()
            self._seen.update(pairs)
        return whole.alpha

    def _join(self, text: str, pairs: list[str]) -> npt.NDArray[np.uint8] | None:
        """Put the glyphs side by side; None if they overlap, or none has ink."""
        pens = accumulate(map(self._step, pairs), initial=0.0)
        placed: list[tuple[int, Ink]] = []
        right = -math.inf
        for character, pen in zip(text, pens, strict=True):
            glyph = self._glyph(character)
            if glyph is None:
                continue
            left = math.floor(pen + 0.5) + glyph.left
            if left < right:
                return None
            right = left + glyph.alpha.shape[1]
            placed.append((left, glyph))
        if not placed:
            return None
        start, top = placed[0][0], min(glyph.top for _, glyph in placed)
        bottom = max(glyph.top + glyph.alpha.shape[0] for _, glyph in placed)
        alpha = np.zeros((bottom - top, int(right) - start), np.uint8)
        for left, glyph in placed:
            rows, columns = glyph.alpha.shape
            down, across = glyph.top - top, left - start
            alpha[down : down + rows, across : across + columns] = glyph.alpha
        return alpha

    def _measure_step(self, pair: str) -> float:
        """Measure how far the pen moves from a pair's first character to its second."""
        return self._font.getlength(pair) - self._font.getlength(pair[1])
