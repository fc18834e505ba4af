"""Which string goes where: a pure function of seed, scenario and image.

No random generator is involved: the numbers are read off a hash, so that a draw never depends on
batch size, order, worker count, platform or library version.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_watermark_guard.watermarks.scenarios import Scenario

_TWO_64 = 2**64
_LAST = 1 - 2**-53  # below 1
# Keeps these numbers apart from any other use of the hash; a new rule of drawing gets a new number.
_DOMAIN = "pytest-watermark-guard/1"


@dataclass(frozen=True)
class Draw:
    """One image's watermark, before it is rendered.

    `across` and `down` are in [0, 1): the share of all positions at which the whole ink is visible
    that lie further left, and further up.
    """

    text: str
    across: float
    down: float


def uniform_words(count: int, *key: object) -> Iterator[int]:
    """Give `count` uniform 64-bit integers that depend on `key` only."""
    encoded = "\x1f".join(map(str, (_DOMAIN, *key))).encode("utf-8", "surrogateescape")
    return iter(struct.unpack(f"<{count}Q", hashlib.shake_256(encoded).digest(8 * count)))


def draw_watermark(scenario: Scenario, seed: int, identity: str) -> Draw:
    """Draw the string and the place for the image that the baseline calls `identity`.

    Symbols are drawn from the alphabet uniformly and with replacement.
    """
    words = uniform_words(scenario.length + 2, seed, scenario.name, identity)
    # Scaling a 64-bit word down to a small range is uniform to within 2**-58.
    symbols = len(scenario.alphabet)
    text = "".join(
        scenario.alphabet[next(words) * symbols // _TWO_64] for _ in range(scenario.length)
    )
    if scenario.place is not None:
        across, down = (min(share, _LAST) for share in scenario.place)
    else:
        # 53 bits, so that the quotient is exact and never rounds up to 1.
        across, down = ((next(words) >> 11) / 2**53 for _ in range(2))
    return Draw(text, across, down)
