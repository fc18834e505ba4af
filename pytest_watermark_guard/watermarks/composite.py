"""Watermarks onto a batch, as tensors on the batch's device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pytest_watermark_guard.watermarks.text import Mark


def composite(
    images: torch.Tensor, marks: Sequence[Mark], color: tuple[int, int, int]
) -> torch.Tensor:
    """Print one mark on each image, uint8 [B, 3, H, W], and return a copy in any memory format.

    round(image · (255 − α) / 255 + color · α / 255). Integer arithmetic throughout: every device,
    and a marked copy written to disk, give the same bytes.
    """
    if images.device.type != "cpu":
        return composite_on_device(images, marks, color)
    # With NumPy: half the time of small tensor operations.
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    if np.may_share_memory(pixels, images.numpy()):
        pixels = pixels.copy()
    for image, mark in zip(pixels, marks, strict=True):
        image[mark.window] = blended(image[mark.window], mark.alpha, color)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def blended(
    pixels: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8], color: tuple[int, int, int]
) -> npt.NDArray[np.uint8]:
    """Return pixels [h, w, 3] with ink of one colour on them, `alpha` [h, w] telling how much."""
    height, width = alpha.shape
    # Row by row: vectors of three would be slow.
    opacity = np.repeat(alpha, 3, axis=1).astype(np.uint16)
    blend = opacity * np.tile(np.array(color, dtype=np.uint16), width)
    np.subtract(255, opacity, out=opacity)
    opacity *= pixels.reshape(height, 3 * width)
    blend += opacity
    result: npt.NDArray[np.uint8] = _divided_by_255(blend).astype(np.uint8)
    return result.reshape(height, width, 3)


def composite_on_device(
    images: torch.Tensor, marks: Sequence[Mark], color: tuple[int, int, int]
) -> torch.Tensor:
    """Print as `composite` does, in tensor operations for any device."""
    height, width = images.shape[-2:]
    rows = max(mark.alpha.shape[0] for mark in marks)
    columns = max(mark.alpha.shape[1] for mark in marks)
    # Only a window of the largest mark's size is touched in each image. Where it would cross the
    # border it is moved inwards, and the mark within it outwards.
    alpha = np.zeros((len(marks), 1, rows, columns), dtype=np.int32)
    marked = images.clone(memory_format=torch.contiguous_format)
    windows = []
    for index, mark in enumerate(marks):
        top, left = min(mark.top, height - rows), min(mark.left, width - columns)
        down, right = mark.top - top, mark.left - left
        ink_rows, ink_columns = mark.alpha.shape
        alpha[index, 0, down : down + ink_rows, right : right + ink_columns] = mark.alpha
        windows.append(marked[index, :, top : top + rows, left : left + columns])
    opacity = torch.from_numpy(alpha).to(images.device)
    ink = torch.tensor(color, dtype=torch.int32, device=images.device).view(3, 1, 1)
    mixed = torch.stack(windows) * (255 - opacity) + ink * opacity
    result = _divided_by_255(mixed).to(torch.uint8)
    for window, pixels in zip(windows, result, strict=True):
        window.copy_(pixels)
    return marked


def _divided_by_255(values: Any) -> Any:
    """Divide, rounded to the nearest: exact for 16 bits, and ten times the speed of ``//``."""
    values += 128
    return ((values >> 8) + values) >> 8
