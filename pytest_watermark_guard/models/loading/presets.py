"""Reading other libraries' preprocessing objects as a `Preprocessing`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pytest_watermark_guard.errors import PreprocessingError
from pytest_watermark_guard.models.loading.pipelines import flat_steps
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing, channels, sides_of

_PIL_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def is_torchvision_preset(preset: Any) -> bool:
    """Tell whether an object is what ``weights.transforms()`` returns."""
    return all(
        hasattr(preset, name)
        for name in ("crop_size", "resize_size", "mean", "std", "interpolation")
    )


def from_torchvision_preset(preset: Any, source: str) -> Preprocessing:
    """Read the preset of torchvision's classification weights."""
    return Preprocessing(
        size=sides_of(preset.crop_size),
        resize=_side_or_pair(preset.resize_size),
        mean=channels(preset.mean),
        std=channels(preset.std),
        interpolation=_interpolation(preset.interpolation),
        source=source,
    )


def from_timm_config(config: Mapping[str, Any], source: str) -> Preprocessing:
    """Read timm's data configuration or a model's ``pretrained_cfg`` as timm's evaluation does."""
    _, height, width = config.get("input_size") or (3, 224, 224)
    scale = config.get("crop_pct") or 0.875
    scaled = math.floor(height / scale), math.floor(width / scale)
    mode = config.get("crop_mode") or "center"
    result = Preprocessing(
        size=(height, width),
        resize=scaled[0] if mode == "center" and height == width else scaled,
        mean=channels(config.get("mean") or Preprocessing.mean),
        std=channels(config.get("std") or Preprocessing.std),
        interpolation=_interpolation(config.get("interpolation") or "bicubic"),
        source=source,
    )
    if mode == "border":
        return result.as_assumed(f"{source}; assumed: squashed where it would add borders")
    return result


def from_hf_processor(processor: Any, source: str) -> Preprocessing:
    """Read an image processor of transformers."""

    def setting(name: str, default: Any = None) -> Any:
        value = getattr(processor, name, None)
        return default if value is None else value

    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    if setting("do_resize", False):
        wanted = setting("size")
        short, height, width = (_entry(wanted, k) for k in ("shortest_edge", "height", "width"))
        if short is None and (height is None or width is None):
            raise PreprocessingError(
                f"{source} resizes to {wanted!r}, which is not understood: pass preprocess="
            )
        resize = (int(height), int(width)) if short is None else int(short)
        family = type(processor).__name__
        if short is not None and family.startswith("ConvNext"):
            # From 384 pixels up it squashes; below, it crops from the enlarged image.
            size = int(short), int(short)
            resize = size if short >= 384 else int(short / setting("crop_pct", 224 / 256))
        elif short is not None and family.startswith("Levit"):
            resize = int((256 / 224) * short)
        if isinstance(resize, tuple):
            size = resize
    if setting("do_center_crop", False):
        crop = setting("crop_size")
        size = int(_entry(crop, "height")), int(_entry(crop, "width"))
    if size is None and resize is not None:
        raise PreprocessingError(
            f"{source} resizes the shorter side to {resize} and does not crop, so images keep "
            "different shapes: pass preprocess= with a size"
        )
    normalised = bool(setting("do_normalize", False))
    # The processor computes (255 x * factor - offset - mean) / std from x in [0, 1].
    factor = 255 * float(setting("rescale_factor", 1 / 255)) if setting("do_rescale") else 255.0
    offset = 1.0 if setting("rescale_offset", False) else 0.0
    mean = channels(setting("image_mean")) if normalised else (0.0,) * 3
    std = channels(setting("image_std")) if normalised else (1.0,) * 3
    if not math.isclose(factor, 1.0) or offset:
        mean = tuple((m + offset) / factor for m in mean)
        std = tuple(s / factor for s in std)
    return Preprocessing(
        size,
        resize,
        mean,
        std,
        _interpolation(setting("resample", 2)),
        source=source,
        crop_floor=True,
    )


def from_compose(compose: Any) -> Preprocessing:
    """Read resizing, cropping and scaling of a ``Compose``, as if its other steps did nothing.

    Whether they do is found by trying it, see `foreign`.
    """
    result = Preprocessing(None, None, (0.0,) * 3, (1.0,) * 3, source="a Compose")
    again = False  # whether it resizes what was resized or cropped already
    white = 1.0  # how much of a photo's range is left to be divided by
    for step in flat_steps(compose):
        name = type(step).__name__
        if name == "Resize":
            again = again or result.resize is not None or result.size is not None
            resize = _side_or_pair(step.size)
            result = dataclasses.replace(
                result, resize=resize, interpolation=_interpolation(step.interpolation)
            )
        elif name == "CenterCrop":
            result = dataclasses.replace(result, size=sides_of(step.size))
        elif name in ("ToImage", "PILToTensor", "MaybePILToTensor"):
            white = 255.0
        elif (name == "ToDtype" and step.scale) or name == "ConvertImageDtype":
            white = 1.0
        elif name == "Normalize":
            # What is scaled already is scaled once more.
            mean, std = (np.array(channels(value)) / white for value in (step.mean, step.std))
            before, spread = np.array(result.mean), np.array(result.std)
            result = dataclasses.replace(
                result,
                mean=tuple((before + spread * mean).tolist()),
                std=tuple((spread * std).tolist()),
            )
            white = 1.0
    if white != 1.0:
        result = dataclasses.replace(result, std=tuple(s / white for s in result.std))
    if again:
        return dataclasses.replace(result, size=None, resize=None)
    if isinstance(result.resize, tuple) and result.size is None:
        return dataclasses.replace(result, size=result.resize)
    return result


def _interpolation(value: Any) -> str:
    """Return the name of a filter that torchvision, PIL or timm names in its own way."""
    name = str(getattr(value, "value", value)).lower()
    name = _PIL_FILTERS.get(int(name), name) if name.isdigit() else name
    return {"random": "bilinear", "nearest-exact": "nearest"}.get(name, name)


def _entry(size: Any, key: str) -> Any:
    return size.get(key) if isinstance(size, Mapping) else getattr(size, key, None)


def _side_or_pair(size: Any) -> int | tuple[int, int]:
    height, width = sides_of(size)
    return height if isinstance(size, int) or len(size) == 1 else (height, width)
