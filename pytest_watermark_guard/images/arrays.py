"""Arrays and tensors as images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pytest_watermark_guard.errors import ImagesError


def image_from_array(array: npt.NDArray[Any] | torch.Tensor, where: str) -> Image.Image:
    """Turn one image's numbers into an RGB image; errors call it `where`.

    The shape is [H, W, 3], [3, H, W], [H, W, 1], [1, H, W] or [H, W]; uint8, or floating point in
    [0, 1]. Anything else is an `ImagesError`.
    """
    if isinstance(array, torch.Tensor):
        tensor = array.detach().cpu()
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    pixels = np.asarray(array)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3) and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ImagesError(
            f"{where}: expected shape [H, W, 3], [3, H, W] or [H, W], got {list(np.shape(array))}"
        )
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise ImagesError(
                f"{where}: floating-point images must lie in [0, 1], these in [{low:.3g}, "
                f"{high:.3g}]; pass them without Normalize (the probe prints its watermarks on "
                "pixels and normalises afterwards), or as uint8"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImagesError(f"{where}: expected uint8 or floating point, got {pixels.dtype}")
    return Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
