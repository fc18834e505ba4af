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
_COLOURS = (
    ((1, 1, 1), (0.05, 0.2)),
    ((1, -1, 0), (0.03, 0.1)),
    ((1, 1, -2), (0.03, 0.1)),
    ((1, 0, 0), (0.039, 0.141)),
)
_FREQUENCIES = 4  # of each colour, as far apart as cropping to 0.63 would move them
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
    """Return two bands for each pair, which differ in all respects; all are used before any again.

    A step in the number of a band is one of angle, four are one of frequency, 16 one of colour.
    """
    drawn: list[int] = []
    for number in range(-(-2 * pairs // len(_BANDS))):
        colour, *words = uniform_words(len(_BANDS) + 1, "ownership", f"bands {number}", seed)
        far = 16 * (colour % 3 + 1) + 4 * 2 + 2
        for first in sorted(range(len(_BANDS)), key=words.__getitem__):
            # In half of the pairs this one is met first, and in half the other.
            if first not in drawn[number * len(_BANDS) :]:
                drawn += [first, first ^ far]
    return drawn[: 2 * pairs]
