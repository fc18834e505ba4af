"""Marked copies of a folder of images, on disk."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.errors import ImagesError, ScenarioError, SettingsError
from pytest_watermark_guard.images.decoding import read_image
from pytest_watermark_guard.images.folder import image_paths
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.setting_values import user_path
from pytest_watermark_guard.watermarks.composite import composite
from pytest_watermark_guard.watermarks.draw import draw_watermark
from pytest_watermark_guard.watermarks.scenarios import Scenario, resolve_scenarios
from pytest_watermark_guard.watermarks.text import Renderer

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {},
    "webp": {"lossless": True},
    "jpeg": {"quality": 95, "subsampling": 0},
}


def write_marked_folder(
    images: str | Path,
    output: str | Path,
    scenario: str | Scenario = "chinese",
    *,
    seed: int = 17,
    format: str = "png",  # noqa: A002 - the word of the trade, and Pillow's
) -> int:
    """Write a watermarked copy of every image below a folder.

    The draws are those of a probe with the same seed: on images of the model's input size,
    ``PairedFolder(name, output)`` gives a probe's own numbers back.

    Parameters
    ----------
    images : str or path
        Folder with the originals; they are only read.
    output : str or path
        Where the copies go, under the same names with the format's suffix.
    scenario : str or Scenario, default "chinese"
    seed : int, default 17
    format : {"png", "webp", "jpeg"}, default "png"
        PNG and WebP are written without loss.

    Returns
    -------
    int
        Number of images written.

    Raises
    ------
    ImagesError
        If an image cannot be read, two would be written under one name, or a file exists already.
    ScenarioError
        If the scenario is unknown or cannot be drawn.
    SettingsError
        If the format is unknown.
    """
    if format not in _SAVE_OPTIONS:
        raise SettingsError(f"format must be one of {', '.join(_SAVE_OPTIONS)}, got {format!r}")
    (resolved,) = resolve_scenarios((scenario,), current_run().scenarios)
    if not isinstance(resolved, Scenario):
        raise ScenarioError(
            f"scenario {resolved.name!r} is a folder of marked copies: there is nothing to draw"
        )
    root, target = user_path("images", images), user_path("output", output)
    copies: dict[Path, Path] = {}
    for path in image_paths(root):
        copy = target / path.relative_to(root).with_suffix("." + format)
        if copy in copies:
            raise ImagesError(f"{copies[copy]} and {path} would both be written to {copy}")
        if copy.exists():
            raise ImagesError(f"{copy} exists already; choose an empty folder")
        copies[copy] = path
    # A folder's images mostly have few sizes.
    renderer_for = lru_cache(maxsize=4)(partial(Renderer, resolved))
    for copy, path in copies.items():
        image = read_image(path)
        renderer = renderer_for(image.height, image.width)
        draw = draw_watermark(resolved, seed, path.relative_to(root).as_posix())
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        marked = composite(pixels, [renderer.render(draw)], renderer.color)[0]
        saved = Image.fromarray(marked.permute(1, 2, 0).contiguous().numpy())
        save = partial(saved.save, format=format, **_SAVE_OPTIONS[format])
        write_atomically(copy, save, tidy=False, durable=False)
    return len(copies)
