"""Marks that are not text but have as much ink: scrambled strokes, and blobs without strokes.

What a unit makes of each is to be compared with what it makes of clean images, too: scrambled
strokes may still look like those of a script.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.watermarks.draw import uniform_words
from pytest_watermark_guard.watermarks.scenarios import Scenario
from pytest_watermark_guard.watermarks.streams import STROKES
from pytest_watermark_guard.watermarks.text import Mark

# Tiles per height: at six nothing can be read, and finer ones only make more edges than text has.
_TILES = 6
_ATTEMPTS = 32
_SOLID = 255


def draw_control(kind: str, mark: Mark, scenario: Scenario, seed: int, identity: str) -> Mark:
    """Draw the control of one kind, see `watermarks.streams`, for one image's mark."""
    if kind == STROKES:
        return draw_scrambled(mark, scenario, seed, identity)
    return draw_blobs(mark, scenario.length)


def draw_blobs(mark: Mark, length: int) -> Mark:
    """Put the ink of each box of a mark, of as many as the string has symbols, into one soft blob.

    The blob fills its box and thins out towards the borders, so that it has no edge: opacity is in
    proportion to (1 − x²)² (1 − y²)², with x and y from −1 to 1, and stays at its highest in the
    middle of boxes with more ink than that holds. The sum of alpha over the box is the mark's.
    """
    height, width = mark.alpha.shape
    alpha = np.zeros_like(mark.alpha)
    borders = [-(-box * width // length) for box in range(length + 1)]
    for left, right in pairwise(borders):
        ink = int(mark.alpha[:, left:right].sum(dtype=np.int64))
        if ink:
            alpha[:, left:right] = _blob(height, right - left, ink)
    return Mark(alpha, mark.top, mark.left)


def _blob(height: int, width: int, ink: int) -> npt.NDArray[np.uint8]:
    order, ordered, rest = _profile(height, width)
    # Solid where it would be more than solid: the innermost `solid` pixels, for the fewest that do.
    solid = np.arange(len(ordered))
    scales = (ink - _SOLID * solid) / rest
    fit = scales * ordered <= _SOLID
    first = int(fit.argmax()) if fit.any() else len(ordered)
    amounts = np.full(len(ordered), float(_SOLID))
    amounts[first:] = ordered[first:] * (scales[first] if first < len(ordered) else 0)
    whole = np.floor(amounts)
    # To the sum exactly: one more where rounding down lost most.
    missing = ink - int(whole.sum())
    whole[np.argsort(whole - amounts, kind="stable")[:missing]] += 1
    alpha = np.empty(height * width, dtype=np.uint8)
    alpha[order] = whole
    return alpha.reshape(height, width)


@lru_cache(maxsize=1024)
def _profile(
    height: int, width: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the pixels from the middle outwards, their weights, and what is left from each on."""
    down, across = (
        np.square(1 - np.square((2 * np.arange(side) + 1 - side) / side))
        for side in (height, width)
    )
    weights = np.outer(down, across).ravel()
    order = np.argsort(-weights, kind="stable")
    ordered = weights[order]
    return order, ordered, np.cumsum(ordered[::-1])[::-1]


def draw_scrambled(mark: Mark, scenario: Scenario, seed: int, identity: str) -> Mark:
    """Scramble the strokes of one image's mark, as `Renderer.render` gave it.

    The mark is cut into as many boxes as the string has symbols, a box into strips of a sixth of
    the mark's height, a strip into tiles as high. Strips change places within their box, tiles
    within their strip: ink, place and box stay as they are, only the edges of the cuts are new. It
    is another picture than the mark, save where (as in a solid bar) shuffling changes nothing.
    """
    alpha = mark.alpha
    for attempt in range(_ATTEMPTS):
        alpha = _shuffled(
            mark.alpha, scenario.length, seed, scenario.name, identity, "control", attempt
        )
        if not np.array_equal(alpha, mark.alpha):
            break
    return Mark(alpha, mark.top, mark.left)


def _shuffled(alpha: npt.NDArray[np.uint8], boxes: int, *key: object) -> npt.NDArray[np.uint8]:
    height, width = alpha.shape
    side = max(2, round(height / _TILES))
    box, strip = _cuts(width, boxes, side)
    strips, tiles = int(strip[-1]) + 1, -(-height // side)
    keys = _sort_keys(strips * (1 + tiles), *key)
    columns = np.lexsort((keys[:strips].take(strip), box))
    order = np.argsort(keys[strips:].reshape(strips, tiles), axis=1)
    rows = np.arange(tiles * side).reshape(tiles, side).take(order, axis=0).reshape(strips, -1)
    # The last tile may be less high than the others.
    rows = rows[rows < height].reshape(strips, height)
    places = (rows * width).take(strip.take(columns), axis=0)
    places += columns[:, None]
    return np.ascontiguousarray(alpha.take(places).T)


@lru_cache(maxsize=1024)
def _cuts(width: int, boxes: int, side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Give each column's box and strip, counted from the left; the strips restart in each box."""
    columns = np.arange(width)
    box = columns * boxes // width
    first = np.diff(box, prepend=-1) > 0
    start = np.maximum.accumulate(np.where(first, columns, 0))
    return box, np.cumsum((columns - start) % side == 0) - 1


def _sort_keys(count: int, *key: object) -> npt.NDArray[np.int64]:
    """Give different numbers to sort by, so that no sorting algorithm has a say: 16 bits each."""
    words = -(-count // 4)
    little_endian = np.fromiter(uniform_words(words, *key), dtype="<u8", count=words)
    return little_endian.view("<u2")[:count].astype(np.int64) * count + np.arange(count)
