"""Marks that are not text but cover as much: whoever reacts to these reacts to any print."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.watermarks.draw import uniform_words
from pytest_watermark_guard.watermarks.scenarios import Scenario
from pytest_watermark_guard.watermarks.text import Mark

# Tiles per height: at six nothing can be read, and finer ones only make more edges than text has.
_TILES = 6
_ATTEMPTS = 32


def draw_control(mark: Mark, scenario: Scenario, seed: int, identity: str) -> Mark:
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
