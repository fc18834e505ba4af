"""Asking a model itself which preprocessing it expects, and what its classes are called."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from pytest_watermark_guard.errors import PreprocessingError
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing, channels, sides_of
from pytest_watermark_guard.models.loading.presets import (
    from_compose,
    from_hf_processor,
    from_timm_config,
    from_torchvision_preset,
    is_compose,
    is_torchvision_preset,
)
from pytest_watermark_guard.models.state import unwrapped


def preprocessing_of(module: nn.Module) -> Preprocessing | None:
    """Return what a model's own configuration or class says, or None.

    Parameters
    ----------
    module : torch.nn.Module
        A model with a `Preprocessing` as its attribute ``preprocessing``, a timm model, a
        transformers model, or one of torchvision's classes.
    """
    module = unwrapped(module)
    own = getattr(module, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(module, name, None)
        if isinstance(config, Mapping) and config.get("mean") is not None:
            return from_timm_config(config, source=f"{type(module).__name__}.{name}")
    config = getattr(module, "config", None)
    if hasattr(config, "image_size") and hasattr(config, "model_type"):
        return _of_hf_model(type(module).__name__, config)
    if type(module).__module__.startswith("torchvision.models."):
        return _of_torchvision_model(module)
    return None


def class_names_of(module: nn.Module) -> tuple[str, ...] | None:
    """Return a model's own class names, or None.

    Parameters
    ----------
    module : torch.nn.Module
        A model with strings as its attribute ``class_names``, or a transformers model whose
        configuration names its labels.
    """
    module = unwrapped(module)
    names = getattr(module, "class_names", None)
    if isinstance(names, Sequence) and all(isinstance(name, str) for name in names):
        return tuple(names)
    labels = getattr(getattr(module, "config", None), "id2label", None)
    if not isinstance(labels, Mapping):
        return None
    names = tuple(str(labels[index]) for index in sorted(labels))
    placeholders = tuple(f"LABEL_{index}" for index in range(len(names)))
    return None if names == placeholders else names


def _of_hf_model(name: str, config: Any) -> Preprocessing:
    directory = getattr(config, "_name_or_path", "")
    if directory and Path(directory).is_dir():
        transformers: Any = importlib.import_module("transformers")
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError):  # a directory without a processor
            pass
        else:
            return from_hf_processor(processor, source=f"the image processor in {directory}")
    sides = config.image_size
    height, width = (sides, sides) if isinstance(sides, int) else (sides[0], sides[-1])
    return Preprocessing.imagenet(
        (height, width),
        source=f"assumed: ImageNet's mean and std, {height}x{width} px as {name}.config says",
        assumed=True,
    )


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


_ACCEPTED = (
    '"auto", "imagenet", "none", a Preprocessing, a dict of its fields, a (mean, std, size) '
    "tuple, a preset of torchvision's weights, a Compose of resizing, cropping, converting and "
    "Normalize, or a function of a float batch [B, 3, H, W] in [0, 1]"
)


def resolve_preprocessing(
    preprocess: Any, module: nn.Module, loaded: Preprocessing | None = None
) -> Preprocessing:
    """Turn a ``preprocess`` argument into a `Preprocessing`.

    Parameters
    ----------
    preprocess : str, Preprocessing, dict, tuple or callable
        ``"auto"``: what the model's spec loaded, else what the model itself says, else ImageNet's
        at 224 pixels, marked as assumed. ``"none"``: values in [0, 1] at the images' own size.
        A dict has the fields of `Preprocessing`, a tuple is (mean, std, size). A preset of
        torchvision's weights and a ``Compose`` of the usual steps are read; any other function
        is called on each batch [B, 3, H, W] in [0, 1], at its ``size`` attribute or 224 pixels.
    module : torch.nn.Module
        Asked for its configuration when ``preprocess`` is ``"auto"``.
    loaded : Preprocessing, optional
        What came with the weights.

    Raises
    ------
    PreprocessingError
        When the argument is none of these.
    """
    if isinstance(preprocess, Preprocessing):
        return preprocess
    if preprocess == "auto":
        return (
            loaded
            or preprocessing_of(module)
            or Preprocessing.imagenet(source="assumed: ImageNet, 224 px", assumed=True)
        )
    if preprocess == "imagenet":
        return Preprocessing.imagenet(source="ImageNet, 224 px, as asked for")
    if preprocess == "none":
        return Preprocessing(None, None, (0.0,) * 3, (1.0,) * 3, source="none: values in [0, 1]")
    if isinstance(preprocess, Mapping):
        return _from_mapping(preprocess)
    if isinstance(preprocess, (tuple, list)) and len(preprocess) == 3:
        mean, std, size = preprocess
        return _from_mapping({"mean": mean, "std": std, "size": size})
    if is_torchvision_preset(preprocess):
        return from_torchvision_preset(preprocess, source="torchvision's preset, as given")
    if is_compose(preprocess):
        return from_compose(preprocess)
    if callable(preprocess):
        size = sides_of(getattr(preprocess, "size", 224))
        name = getattr(preprocess, "__name__", type(preprocess).__name__)
        return Preprocessing.imagenet(size, source=f"your {name}", normalize=preprocess)
    raise PreprocessingError(f"preprocess={preprocess!r} is not understood: it may be {_ACCEPTED}")


def _from_mapping(fields: Mapping[str, Any]) -> Preprocessing:
    known = {field.name for field in dataclasses.fields(Preprocessing)}
    unknown = sorted(set(map(str, fields)) - known)
    if unknown:
        raise PreprocessingError(
            f"preprocess has unknown fields {', '.join(unknown)}; known are {', '.join(known)}"
        )
    values = dict(fields)
    try:
        for name in ("mean", "std"):
            if name in values:
                values[name] = channels(values[name])
        size = None if values.get("size") is None else sides_of(values["size"])
        resize = values.get("resize", size)
        if resize is not None and not isinstance(resize, int):
            resize = sides_of(resize)
    except (TypeError, ValueError) as error:
        raise PreprocessingError(
            f"preprocess={dict(fields)!r} is not understood: {error}"
        ) from error
    if "resize" not in values and size is not None and size[0] == size[1]:
        resize = size[0]  # keep the aspect ratio
    return Preprocessing(**{**values, "size": size, "resize": resize})
