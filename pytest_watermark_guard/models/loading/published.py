"""What other libraries' models say about their own preprocessing."""

from __future__ import annotations

import importlib
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any, cast

from torch import nn

from pytest_watermark_guard.models.loading.foreign import tried
from pytest_watermark_guard.models.loading.pipelines import is_compose, is_image_processor
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing, channels, sides_of
from pytest_watermark_guard.models.loading.presets import (
    from_compose,
    from_hf_processor,
    from_timm_config,
    from_torchvision_preset,
)

Sides = tuple[int, int]


def said_by(module: nn.Module) -> Preprocessing | None:
    """Return what one module says itself, by its attributes, configuration or class, or None."""
    own = getattr(module, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own
    name = type(module).__name__
    for attribute in ("preprocessing", "image_processor", "transforms"):
        value = getattr(module, attribute, None)
        if is_compose(value) or is_image_processor(value):
            return from_object(value, f"{name}.{attribute}")
    visual = getattr(module, "visual", module)
    if getattr(visual, "image_mean", None) is not None:
        return _of_open_clip_tower(visual)
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(module, attribute, None)
        if isinstance(config, Mapping) and config.get("mean") is not None:
            return from_timm(config, f"{name}.{attribute}", fixed_size(module))
    config = getattr(module, "config", None)
    if hasattr(config, "model_type"):
        return _of_hf_model(name, config)
    said = _of_attributes(name, module)
    if said is not None:
        return said
    # Others give their classes the same names.
    theirs = type(module).__module__.startswith("torchvision.models.")
    return _of_torchvision_model(module) if theirs and name in _torchvision_families() else None


def from_object(value: Any, name: str, *, keep_exact_size: bool = True) -> Preprocessing:
    """Try a ``Compose``, an image processor or a preset on photos, see `foreign.tried`."""
    processor = getattr(value, "image_processor", value)
    steps = getattr(processor, "val_transforms", value)  # of a TimmWrapperImageProcessor
    if is_compose(steps):
        translate = partial(from_compose, steps)
    elif is_image_processor(value):
        translate = partial(from_hf_processor, processor, source=name)
    else:
        translate = partial(from_torchvision_preset, value, source=name)
    return tried(value, name, translate, keep_exact_size=keep_exact_size)


def from_timm(config: Mapping[str, Any], name: str, size: Sides | None = None) -> Preprocessing:
    """Try what timm's evaluation does by a configuration, at the model's own size if it has one."""
    chosen = dict(config)
    colours, *published = chosen.get("input_size") or (3, 224, 224)
    if size is not None and size != tuple(published):
        chosen["input_size"] = (colours, *size)
        name = f"{name}, at the {size[0]}x{size[1]} px that the model was built for"
    if colours != 3:
        return from_timm_config(chosen, source=name)
    # A configuration may come without the library: exported models carry one.
    try:
        data: Any = importlib.import_module("timm.data")
    except ModuleNotFoundError:
        return from_timm_config(chosen, source=name)
    transform = data.create_transform(**data.resolve_data_config(pretrained_cfg=chosen))
    translate = partial(from_timm_config, chosen, source=name)
    return tried(transform, name, translate, keep_exact_size=True)


def fixed_size(module: nn.Module) -> Sides | None:
    """Return the input's height and width that an instance was built for, where it says so."""
    holders = getattr(module, "patch_embed", None), getattr(module, "visual", None), module
    return next((size for holder in holders for size in _sizes_at(holder)), None)


def sizes_inside(module: nn.Module) -> Iterator[Sides]:
    """Give the sizes that a model's parts say they were built for, outermost first."""
    for part in module.modules():
        yield from _sizes_at(part)
    config = getattr(module, "config", None)
    for holder in (getattr(config, "vision_config", None), config):
        yield from _sizes_at(holder)


def _sizes_at(holder: Any) -> Iterator[Sides]:
    for name in ("img_size", "image_size", "input_resolution"):
        value = getattr(holder, name, None)
        if name == "input_resolution" and not isinstance(value, int):
            continue  # CLIP's is the input's; Swin gives each of its stages one, as a pair
        sides = (value, value) if isinstance(value, int) else value
        if not isinstance(sides, tuple | list) or len(sides) != 2:
            continue
        if all(isinstance(side, int) and side > 0 for side in sides):
            yield sides_of(sides)


def _of_open_clip_tower(visual: nn.Module) -> Preprocessing:
    name = f"{type(visual).__name__}.image_mean, image_std"
    mean, std = channels(visual.image_mean), channels(visual.image_std)
    size = fixed_size(visual) or (224, 224)
    config = getattr(visual, "preprocess_cfg", None)
    if not type(visual).__module__.startswith("open_clip") or not config:
        return Preprocessing(
            size,
            size[0],
            mean,
            std,
            "bicubic",
            f"assumed: {size[0]}x{size[1]} px, bicubic; {name}",
            True,
        )
    transforms: Any = importlib.import_module("open_clip.transform")
    # The attributes win: they may have been set after the configuration was written.
    settings = {**config, "size": size, "mean": mean, "std": std}
    transform = transforms.image_transform_v2(transforms.PreprocessCfg(**settings), is_train=False)
    return from_object(transform, f"open_clip's preprocessing of {name}")


def _of_attributes(name: str, module: nn.Module) -> Preprocessing | None:
    """Read what pretrainedmodels sets on a network of whatever class, where it is of RGB images."""
    values: list[Any] = [getattr(module, key, None) for key in ("mean", "std", "input_size")]
    if not all(isinstance(value, list | tuple) and len(value) == 3 for value in values):
        return None
    if getattr(module, "input_space", "RGB") != "RGB":
        return None
    white = max(getattr(module, "input_range", (0, 1)))
    *scaling, (_, height, width) = values
    mean, std = (tuple(v / white for v in channels(value)) for value in scaling)
    return Preprocessing(
        (height, width),
        math.floor(height / 0.875) if height == width else (height, width),
        mean,
        std,
        source=f"assumed: bilinear, cropped from 8/7 of its size; {name}.mean, std and input_size",
        assumed=True,
    )


def _of_hf_model(name: str, config: Any) -> Preprocessing | None:
    origin = getattr(config, "_name_or_path", "")
    if origin:
        transformers: Any = importlib.import_module("transformers")
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                origin, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError):  # nothing there, or no processor
            pass
        else:
            return from_object(processor, f"the image processor in {origin}")
    published = getattr(config, "pretrained_cfg", None)  # of a timm model
    if isinstance(published, Mapping) and published.get("mean") is not None:
        return from_timm(published, f"{name}.config.pretrained_cfg")
    sizes = [s for c in (getattr(config, "vision_config", None), config) for s in _sizes_at(c)]
    if not sizes:
        return None
    height, width = sizes[0]
    return Preprocessing.imagenet(
        (height, width),
        source=f"assumed: ImageNet's mean and std, {height}x{width} px as {name}.config says",
        assumed=True,
    )


@cache
def _torchvision_families() -> frozenset[str]:
    """Return the names of torchvision's classes of whole networks; parts of them say nothing."""
    from torchvision import models

    builders = (
        models.get_model_builder(name)
        for module in (models, models.quantization)
        for name in models.list_models(module=module)
    )
    return frozenset(builder.__annotations__["return"].__name__ for builder in builders)


def _of_torchvision_model(module: nn.Module) -> Preprocessing | None:
    from torchvision.models import WeightsEnum

    family = type(module).__name__
    entries = [
        entry
        for enum in vars(sys.modules[type(module).__module__]).values()
        if isinstance(enum, type) and issubclass(enum, WeightsEnum)
        for entry in cast(Any, enum)
    ]
    # One class serves many architectures; the number of parameters tells which, unless the
    # head was replaced.
    count = sum(parameter.numel() for parameter in module.parameters())
    same = [entry for entry in entries if entry.meta.get("num_params") == count] or entries
    presets = [
        from_torchvision_preset(entry.transforms(), source=f"torchvision's presets of {family}")
        for entry in same
    ]
    side = getattr(module, "image_size", None)  # ViT's tables of positions fix it
    presets = [preset for preset in presets if side is None or preset.size == (side, side)]
    if not presets:
        return side and Preprocessing.imagenet(
            (side, side),
            source=f"assumed: ImageNet's mean and std, {side} px as {family}.image_size says",
            assumed=True,
        )
    (best, votes), *_ = Counter(presets).most_common()
    if votes == len(presets):
        return best
    assert best.size is not None
    return best.as_assumed(
        f"assumed: the most common of torchvision's presets of {family}, {best.size[0]} px"
    )
