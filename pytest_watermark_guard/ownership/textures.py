"""Perturbations that do not repeat: noise in a band of frequencies, of one direction and colour.

What an encoder can tell of them is how much of a picture lies in a band, and not what is where:
that hardly changes when a picture is mirrored, cropped, compressed or slightly blurred. A pattern
that repeats would be found, and removed, by averaging a picture over its period.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pytest_watermark_guard.watermarks.draw import uniform_words

# Red, green and blue; and from which frequency to which, in cycles per pixel. Of colours without
# brightness JPEG keeps low frequencies only, and there are few in photos: they would show.
# The colour half the list further shares nothing with this one: the two are for a pair.
_COLOURS = (
    ((1, 1, 1), (0.04, 0.22)),
    ((1, -1, 0), (0.03, 0.12)),
    ((1, 0, 0), (0.035, 0.16)),
    ((1, 1, -2), (0.03, 0.12)),
    ((0, 0, 1), (0.03, 0.12)),
    ((0, 1, 0), (0.035, 0.16)),
)
# Of each colour. Each is about twice the one before: cropping to 0.8 moves a band by a third of
# the way to its neighbour, so that the two stay apart. Measured on SimCLR: with four, half the way,
# the key was often not found in cropped queries.
_FREQUENCIES = 3
_ANGLES = 4  # from level to upright, and mirrored
# Standard deviations of a band: of the logarithm of frequency, and in radians.
_WIDTH, _SPREAD = 0.18, 0.3
_Band = tuple[tuple[tuple[int, int, int], tuple[float, float]], int, int]
_BANDS: list[_Band] = list(product(_COLOURS, range(_FREQUENCIES), range(_ANGLES)))


class Textures:
    """Bands of frequencies, one for each perturbation, and noise within them.

    Parameters
    ----------
    pairs : int
        There are two textures for each; those of a pair are in different bands.
    size : sequence of int
        Height and width.
    seed : int
        Secret: which band is whose, and the noise, depend on all of its bits.
    """

    def __init__(self, pairs: int, size: Sequence[int], seed: int) -> None:
        self._size = size[0], size[1]
        chosen = [_BANDS[index] for index in _drawn(pairs, seed)]
        self._bands = torch.stack([self._band(*band) for band in chosen])
        colours = torch.tensor([colour for (colour, _), *_ in chosen], dtype=torch.float32)
        scale = colours.count_nonzero(1).sqrt()[:, None]
        self._colours = (functional.normalize(colours) * scale)[:, :, None, None]
        signs = random_signs(len(chosen) * math.prod(size), "noise", seed)
        self.start = self.within(
            signs.view(-1, 1, *self._size) * self._colours, torch.arange(len(chosen))
        )
        """Float [2 * pairs, 3, H, W], of variance 1, on average of the channels that vary."""

    def within(self, images: Tensor, which: Tensor) -> Tensor:
        """Return what of images [n, 3, H, W] is in the bands `which` [n], as large as `start`."""
        colours = self._colours[which]
        along = (images * colours).sum(1)
        kept: Tensor = torch.fft.irfft2(torch.fft.rfft2(along) * self._bands[which], s=self._size)
        kept = kept / kept.std((1, 2), keepdim=True).clamp_min(1e-12)
        return kept[:, None] * colours

    def _band(
        self, colour: tuple[tuple[int, int, int], tuple[float, float]], f: int, a: int
    ) -> Tensor:
        """Return amplitudes [H, W // 2 + 1] of a band, 1 at most."""
        height, width = self._size
        down, across = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        # Of a small image the lowest frequencies would be no texture.
        low, high = (max(limit, 1.5 / min(self._size)) for limit in colour[1])
        middle = low * (high / low) ** (f / (_FREQUENCIES - 1))
        # Both diagonals: the band is the same in a mirror.
        angle = torch.atan2(down.abs(), across.abs()) - math.pi / 2 * a / (_ANGLES - 1)
        octaves = (torch.hypot(down, across).clamp_min(1e-6) / middle).log()
        power = torch.exp(-((octaves / _WIDTH).square() + (angle / _SPREAD).square()) / 2)
        power[0, 0] = 0
        return (power / power.max()).sqrt()


def random_signs(count: int, what: str, seed: int) -> Tensor:
    """Return secret signs [count], -1 or 1, that depend on all of the seed."""
    words = np.fromiter(uniform_words(-(-count // 64), "ownership", what, seed), np.uint64)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[:count]
    return torch.from_numpy(bits.astype(np.float32)) * 2 - 1


def _drawn(pairs: int, seed: int) -> list[int]:
    """Return two bands for each pair, a band and its partner; all are used before any again."""
    drawn: list[int] = []
    for number in range(-(-2 * pairs // len(_BANDS))):
        words = list(uniform_words(len(_BANDS), "ownership", f"bands {number}", seed))
        for first in sorted(range(len(_BANDS)), key=words.__getitem__):
            # In half of the pairs this one is met first, and in half the other.
            if first not in drawn[number * len(_BANDS) :]:
                drawn += [first, _partner(first)]
    return drawn[: 2 * pairs]


def _partner(band: int) -> int:
    """Return the band of another direction and colour, whose frequency cropping moves alike."""
    colour, rest = divmod(band, _FREQUENCIES * _ANGLES)
    frequency, angle = divmod(rest, _ANGLES)
    colour = (colour + len(_COLOURS) // 2) % len(_COLOURS)
    angle = (angle + _ANGLES // 2) % _ANGLES
    return (colour * _FREQUENCIES + frequency) * _ANGLES + angle
