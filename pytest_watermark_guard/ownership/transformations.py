"""What happens to pictures on their way to a model, which a mark has to survive."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

_LEAST_SHARE = 0.75  # of a side that cropping leaves
_MOST_BLUR = 1.4  # pixels
_QUALITIES = 40, 90
_LEAST_AREA, _STRETCH, _MOST_BLENDED = 0.15, 0.28, 0.5  # of what makes pictures vary


def disturbed(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Change versions of images, uint8 [versions, n, 3, H, W], by chance.

    Half of the images are mirrored; half are cropped and resized, a sixth blurred, a sixth
    compressed. All versions of an image are changed in the same way: they are to be compared.
    """
    changed = pixels.clone()
    for index in range(pixels.shape[1]):
        mirrored, which, much, top, left = torch.rand(5, generator=generator).tolist()
        images = pixels[:, index]
        if mirrored < 0.5:
            images = images.flip(-1)
        if which < 3 / 6:
            images = cropped(images, _LEAST_SHARE + (1 - _LEAST_SHARE) * much, top, left)
        elif which < 4 / 6:
            images = blurred(images, _MOST_BLUR * max(much, 0.1))
        elif which < 5 / 6:
            low, high = _QUALITIES
            images = compressed(images, round(low + (high - low) * much))
        changed[:, index] = images
    return changed


def varied(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Make other pictures of uint8 [n, 3, H, W], by chance, for there are never enough of them.

    Each is a part of an image, stretched and resized; half are mirrored, and half blended with the
    next one.
    """
    height, width = pixels.shape[2:]
    parts = []
    for image in pixels:
        area, stretch, top, left, mirrored = torch.rand(5, generator=generator).tolist()
        side = math.sqrt(_LEAST_AREA + (1 - _LEAST_AREA) * area)
        ratio = math.exp((2 * stretch - 1) * _STRETCH)
        rows = min(max(round(height * side * ratio), 1), height)
        columns = min(max(round(width * side / ratio), 1), width)
        y, x = round(top * (height - rows)), round(left * (width - columns))
        part = resized(image[None, :, y : y + rows, x : x + columns], height, width)
        parts.append(part.flip(-1) if mirrored < 0.5 else part)
    found = torch.cat(parts).float()
    share, blended = torch.rand(2, len(found), generator=generator)
    share = _MOST_BLENDED * share * (blended < 0.5)
    return as_bytes(torch.lerp(found, found.roll(1, 0), share[:, None, None, None]))


def cropped(pixels: Tensor, share: float, top: float = 0.5, left: float = 0.5) -> Tensor:
    """Cut out a share of both sides of uint8 [n, 3, H, W], and resize it to what it was.

    `top` and `left`, in [0, 1], say where: 0.5 is the middle.
    """
    height, width = pixels.shape[2:]
    rows, columns = max(round(height * share), 1), max(round(width * share), 1)
    y, x = round(top * (height - rows)), round(left * (width - columns))
    return resized(pixels[:, :, y : y + rows, x : x + columns], height, width)


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 [n, 3, h, w], linearly, and smoothed where it becomes smaller."""
    size = height, width
    larger = functional.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True)
    return as_bytes(larger)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Blur uint8 [n, 3, H, W] by a Gaussian of this many pixels."""
    reach = max(math.ceil(3 * sigma), 1)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-(offsets / sigma).square() / 2)
    weights = weights / weights.sum()
    planes = pixels.float().flatten(0, 1)[:, None]
    planes = functional.pad(planes, (reach,) * 4, mode="replicate")
    planes = functional.conv2d(
        functional.conv2d(planes, weights[None, None, None]), weights[None, None, :, None]
    )
    return as_bytes(planes.view(pixels.shape))


def compressed(pixels: Tensor, quality: int) -> Tensor:
    """Write uint8 [n, 3, H, W] as JPEG, and read it again."""

    def again(image: Tensor) -> Tensor:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)

    return torch.stack([again(image) for image in pixels])


def as_bytes(values: Tensor) -> Tensor:
    """Round to what an 8-bit picture can hold."""
    return values.round().clamp(0, 255).byte()
