"""Asking a model itself which preprocessing it expects, and what its classes are called."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pytest_watermark_guard.errors import PreprocessingError
from pytest_watermark_guard.models.loading.channels import for_input
from pytest_watermark_guard.models.loading.first_layer import read_first_layer
from pytest_watermark_guard.models.loading.pipelines import is_compose, is_image_processor
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing, channels, sides_of
from pytest_watermark_guard.models.loading.presets import is_torchvision_preset
from pytest_watermark_guard.models.loading.published import from_object, said_by, sizes_inside
from pytest_watermark_guard.models.state import unwrapped

_DEPTH = 5  # of wrappers: Lightning around PEFT's two around EMA around the model


def preprocessing_of(module: nn.Module) -> Preprocessing | None:
    """Return what a model's own configuration or class says, or None.

    Parameters
    ----------
    module : torch.nn.Module
        A model with a `Preprocessing`, a ``Compose`` or an image processor as its attribute
        ``preprocessing``, a model of timm, transformers, open_clip or torchvision, or a wrapper
        (Lightning, EMA, PEFT, one's own) with one such model inside.

    Raises
    ------
    PreprocessingError
        When what it says cannot be used, see `foreign.tried`.
    """
    level = [unwrapped(module)]
    for _ in range(_DEPTH):
        found = [said for part in level if (said := said_by(part)) is not None]
        if found:
            # Of parts that want different things, none speaks for the whole.
            return (
                found[0] if len({dataclasses.replace(f, source="") for f in found}) == 1 else None
            )
        level = [child for part in level for child in part.children()]
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


_ACCEPTED = (
    '"auto", "imagenet", "none", a Preprocessing, a dict of its fields, a (mean, std, size) '
    "tuple, a transform of torchvision, timm, open_clip or ultralytics (Compose), an image "
    "processor of transformers, or a function of a float batch [B, 3, H, W] in [0, 1]"
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
        A dict has the fields of `Preprocessing`, a tuple is (mean, std, size). A ``Compose``, an
        image processor of transformers and a preset of torchvision's weights are tried on photos,
        see `foreign.tried`; any other function is called on each batch [B, 3, H, W] in [0, 1], at
        its ``size`` attribute or 224 pixels.
    module : torch.nn.Module
        Run up to its first layer, for the number of its channels; with ``"auto"`` also asked for
        its configuration, and whether it normalises by itself.
    loaded : Preprocessing, optional
        What came with the weights.

    Raises
    ------
    PreprocessingError
        When the argument is none of these, cannot be used, or does not suit the model's channels.
    """
    if not isinstance(preprocess, str) or preprocess != "auto":
        return for_input(_given(preprocess), module)
    return for_input(loaded or _said_or_assumed(module), module, auto=True)


def input_shape(module: nn.Module) -> tuple[tuple[int, int] | None, int]:
    """Return height and width (None: any) and the number of channels of a model's input.

    Raises
    ------
    PreprocessingError
        When what the model says of its preprocessing cannot be used.
    """
    size = _said_or_assumed(module).size
    first = read_first_layer(module, size)
    return size, 3 if first is None or first.channels is None else first.channels


def _said_or_assumed(module: nn.Module) -> Preprocessing:
    said = preprocessing_of(module)
    if said is not None:
        return said
    size = next(sizes_inside(unwrapped(module)), None)
    if size is None:
        return Preprocessing.imagenet(source="assumed: ImageNet, 224 px", assumed=True)
    source = f"assumed: ImageNet, {size[0]}x{size[1]} px as the model says"
    return Preprocessing.imagenet(size, source=source, assumed=True)


def _given(preprocess: Any) -> Preprocessing:
    if isinstance(preprocess, Preprocessing):
        return preprocess
    if isinstance(preprocess, str):
        if preprocess == "imagenet":
            return Preprocessing.imagenet(source="ImageNet, 224 px, as asked for")
        if preprocess == "none":
            source = "none: values in [0, 1]"
            return Preprocessing(None, None, (0.0,) * 3, (1.0,) * 3, source=source)
    if isinstance(preprocess, Mapping):
        return _from_mapping(preprocess)
    if isinstance(preprocess, (tuple, list)) and len(preprocess) == 3:
        mean, std, size = preprocess
        return _from_mapping({"mean": mean, "std": std, "size": size})
    name = getattr(preprocess, "__name__", type(preprocess).__name__)
    if is_torchvision_preset(preprocess):
        return from_object(preprocess, "torchvision's preset", keep_exact_size=False)
    if is_compose(preprocess) or is_image_processor(preprocess):
        return from_object(preprocess, f"your {name}", keep_exact_size=False)
    if callable(preprocess):
        size = sides_of(getattr(preprocess, "size", 224))
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
