"""Perturbations: nothing in them repeats, and what they are known by survives."""

from __future__ import annotations

import pytest
import torch

from pytest_watermark_guard.ownership.textures import Textures
from pytest_watermark_guard.ownership.transformations import (
    blurred,
    compressed,
    cropped,
    disturbed,
    resized,
    varied,
)

SIZE = 64, 64


def power(images):
    """Return how images [n, 3, H, W] spread over frequencies, each with a sum of 1."""
    found = torch.fft.rfft2(images.float()).abs().square().sum(1)
    return found / found.sum((1, 2), keepdim=True)


@pytest.mark.parametrize("pairs", [1, 32, 44])
def test_the_two_of_a_pair_have_different_bands(pairs):
    spectra = torch.fft.rfft2(Textures(pairs, SIZE, 1).start).view(pairs, 2, 3, 64, 33)
    spectra = spectra / spectra.abs().square().sum((2, 3, 4), keepdim=True).sqrt()
    # At each frequency as far as they have the same colour.
    alike = (spectra[:, 0] * spectra[:, 1].conj()).sum(1).abs().sum((1, 2))
    assert alike.max() < 0.01


def test_nothing_repeats():
    start = Textures(32, SIZE, 1).start
    for period in (4, 8, 16):
        times = 64 // period
        tile = start.reshape(64, 3, times, period, times, period).mean((2, 4))
        # Of independent numbers the mean tile has this share of the variance; ours are smooth.
        assert tile.var() / start.var() < 8 / times**2


def test_every_bit_of_the_seed_decides_bands_and_noise():
    one, same, other = (Textures(4, SIZE, seed).start for seed in (1, 1, 1 + 2**100))
    assert torch.equal(one, same)
    correlation = (one * other).mean() / one.square().mean()
    assert abs(correlation) < 0.1


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (33, 47), (224, 224)], ids=str)
def test_images_of_any_size(size):
    textures = Textures(3, size, 1)
    assert textures.start.shape == (6, 3, *size)
    assert textures.start.isfinite().all()
    assert 0.5 < textures.start.std() < 1.1


def test_what_is_within_a_band():
    textures = Textures(4, SIZE, 1)
    noise = torch.randn(8, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    inside = textures.within(noise, torch.arange(8))
    spread = power(inside) * power(textures.start)
    # Not of its partner, whose frequency may be the same: of the next pair.
    crossed = power(inside) * power(textures.start.roll(2, 0))
    assert (spread.sum((1, 2)) > 2 * crossed.sum((1, 2))).all()


def test_versions_of_an_image_are_changed_alike():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 20, 30), generator=generator).byte()
    one, other = disturbed(torch.stack([images, images]), generator)
    assert torch.equal(one, other)
    assert one.shape == images.shape
    assert one.dtype is torch.uint8
    kept = [
        bool((a == b).all() or (a == b.flip(-1)).all()) for a, b in zip(one, images, strict=True)
    ]
    assert 0 < sum(kept) < len(kept)
    again = disturbed(torch.stack([images, images]), torch.Generator().manual_seed(7))
    assert torch.equal(
        again, disturbed(torch.stack([images, images]), torch.Generator().manual_seed(7))
    )


def test_pictures_that_vary():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 20, 30), generator=generator).byte()
    one, other = (varied(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, other)
    assert one.shape == images.shape
    assert one.dtype is torch.uint8
    differs = (one != images).flatten(1).any(1)
    assert differs.all()
    # Parts of flat images are flat; half are blended with the next one.
    levels = torch.arange(24, dtype=torch.uint8) * 10
    flat = levels[:, None, None, None].expand(24, 3, 20, 30)
    changed = varied(flat, torch.Generator().manual_seed(7))
    assert (changed.flatten(1).amax(1) - changed.flatten(1).amin(1)).max() <= 1
    kept = (changed[:, 0, 0, 0].int() - levels.int()).abs() <= 1
    assert 6 <= int(kept.sum()) <= 20


def test_each_change_alone():
    flat = torch.full((2, 3, 21, 30), 77, dtype=torch.uint8)
    for changed in (
        cropped(flat, 0.8), cropped(flat, 0.75, 0.0, 1.0), resized(flat, 21, 30),
        blurred(flat, 1.3), compressed(flat, 50),
    ):  # fmt: skip
        assert changed.shape == flat.shape
        assert (changed.int() - 77).abs().max() <= 1
    point = torch.zeros(1, 3, 21, 21, dtype=torch.uint8)
    point[..., 10, 10] = 255
    spread = blurred(point, 1.0)
    assert torch.equal(spread, spread.flip(-1))
    assert torch.equal(spread, spread.transpose(2, 3))
    assert abs(int(spread[0, 0].sum()) - 255) <= 12  # rounded at each pixel
    left = cropped(point, 11 / 21, 0.0, 0.0)
    assert left[0, 0].float().argmax() == 21 * 21 - 1
