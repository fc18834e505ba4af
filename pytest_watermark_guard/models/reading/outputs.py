"""Reading what a model or a layer returns as one number per image and unit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_watermark_guard.errors import LayerError

# What users of a model without class logits take, the first of them that it returns.
_BACKBONE_FIELDS = ("image_embeds", "pooler_output", "last_hidden_state")
# Beside them an output that reads as tokens or as a vector is one of many per image.
_DENSE_FIELDS = ("boxes", "pred_boxes", "pred_masks", "masks_queries_logits")
NO_FEATURES = (
    "features are not probed: no tensor was found of which the model makes its output; name a layer"
)
_CLOSE = 1e-4  # of the largest logit
_DEEPEST = 3  # structures within structures


def main_tensor(
    output: Any, images: int | None = None, sides: Sequence[int] = ()
) -> tuple[Tensor, bool]:
    """Return the tensor that a model's output is about, and whether it marks a backbone.

    Of tensors with another number of rows than `images` none is, where that is given.
    `sides` are the input's, see `is_dense`.

    Raises
    ------
    LayerError
        When no tensor can be read as logits, a feature map or tokens.
    """
    vectors = vector_outputs(output, images)
    if is_dense(output, sides):
        raise LayerError(
            f"the model returned {describe(output)}, a dense prediction: many per image, of which "
            "none is its logits. Name the layers to probe, such as its backbone's last one "
            '(layers=("backbone.layer4",)), or wrap the model so that forward returns [B, C]'
        )
    if "logits" in vectors:
        return vectors["logits"], False
    field = None if isinstance(output, Tensor) else _backbone_field(output)
    if field is not None:
        return field, True
    for tensor in vectors.values():
        return tensor, False
    # A dictionary of maps is a dense prediction, for instance a segmentation, not a backbone.
    maps = [] if isinstance(output, Mapping) else _maps(output, images)
    if maps:
        return maps[0], True
    raise _unreadable(output, images)


def _unreadable(output: Any, images: int | None) -> LayerError:
    """Return the error for an output that cannot be read as logits of so many images."""
    of = "" if images is None else f" for B = {images} images"
    return LayerError(
        f"the model returned {describe(output)}, where logits of shape [B, C] were expected{of}: "
        "wrap the model so that forward returns them"
    )


def vector_outputs(output: Any, images: int | None = None) -> dict[str, Tensor]:
    """Return every output of shape [B, C] by its name: a field, or its place, or "" for the only.

    [B] and [B, C, 1, 1] are read as [B, C]. A tensor with another number of rows than `images`,
    such as prototypes, says nothing of an image.
    """
    vectors: dict[str, Tensor] = {}

    def collect(value: Any, name: str, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            if _is_of(value, images) and _is_vector(value):
                vectors[name] = value if value.ndim == 2 else value.reshape(len(value), -1)
            return
        for key, item in fields_of(value).items() if depth < _DEEPEST else ():
            collect(item, f"{name}.{key}" if name else key, depth + 1)

    collect(output, "")
    return vectors


def expected_outputs(output: Any, images: int, names: Collection[str]) -> dict[str, Tensor]:
    """Return `vector_outputs`, among which are those that were there when layers were found.

    Raises
    ------
    LayerError
        If one is missing now.
    """
    vectors = vector_outputs(output, images)
    if not {*names} <= {*vectors}:
        raise _unreadable(output, images)
    return vectors


def further_outputs(output: Any, main: Tensor, kind: str) -> dict[str, str]:
    """Return the layers of all outputs of shape [B, C] but the main one: ``kind[name]`` to name."""
    vectors = vector_outputs(output, len(main))
    # By where the numbers lie: [B] and [B, C, 1, 1] are another tensor each time they are read.
    others = (name for name, tensor in vectors.items() if tensor.data_ptr() != main.data_ptr())
    return {f"{kind}[{name}]": name for name in others}


def fields_of(output: Any) -> dict[str, Any]:
    """Return what a tuple, list, dictionary or an object of fields holds, by name or place."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, (tuple, list)):
        return {str(index): value for index, value in enumerate(output)}
    if isinstance(output, (Tensor, str, bytes)) or output is None:
        return {}
    return dict(getattr(output, "__dict__", {}))


def _is_of(tensor: Tensor, images: int | None) -> bool:
    """Tell whether a tensor holds some number for each of so many images."""
    rows = tensor.numel() > 0 and tensor.ndim and (images is None or len(tensor) == images)
    return bool(rows and tensor.is_floating_point())


def _is_vector(tensor: Tensor) -> bool:
    return tensor.ndim == 1 or is_units(tensor)


def is_dense(output: Any, sides: Sequence[int] = ()) -> bool:
    """Tell detectors and segmenters by what they return.

    With the input's `sides` also by an answer for each of its pixels: backbones make maps smaller.
    """
    if isinstance(output, Tensor) and output.ndim in (3, 4) and sides:
        return max(sides) > 1 and output.shape[-2:] == torch.Size(sides)
    fields = fields_of(output)
    if any(name in fields and fields[name] is not None for name in _DENSE_FIELDS):
        return True
    if vector_outputs(output):
        return False
    if isinstance(output, (tuple, list)) and output:
        first, *rest = output
        # One box or class an anchor, and the maps that they were made of, as YOLO returns them.
        return (
            isinstance(first, Tensor)
            and first.ndim == 3
            and any(isinstance(item, (list, tuple, Mapping)) for item in rest)
        )
    return False


def _maps(output: Any, images: int | None) -> list[Tensor]:
    """Return maps and tokens, the deepest first: the smallest side, then the last."""
    if isinstance(output, Tensor):
        tensors = [output]
    else:
        tensors = [item for item in fields_of(output).values() if isinstance(item, Tensor)]
    maps = [t for t in tensors if t.ndim in (3, 4) and _is_of(t, images)]
    maps.reverse()  # of equal ones the last
    return sorted(maps, key=lambda t: t.shape[2:].numel() if t.ndim == 4 else 0)


def _field(output: Any, name: str) -> Any:
    if isinstance(output, Mapping):
        return output.get(name)
    return None if isinstance(output, Tensor) else getattr(output, name, None)


def _backbone_field(output: Any) -> Any:
    for name in _BACKBONE_FIELDS:
        value = _field(output, name)
        # A last hidden state is tokens or maps; transformers' PP-LCNet calls its scores so.
        scores = name == "last_hidden_state" and isinstance(value, Tensor) and value.ndim == 2
        if isinstance(value, Tensor) and not scores:
            return value
    return None


def describe(output: Any) -> str:
    """Say in a few words what a module returned: types, field names and shapes."""
    if isinstance(output, Tensor):
        return f"a {str(output.dtype).removeprefix('torch.')} tensor of shape {[*output.shape]}"
    if isinstance(output, Mapping):
        fields = [f"{key}: {_short(value)}" for key, value in output.items()]
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        fields = [f"{k}: {_short(v)}" for k, v in zip(output._fields, output, strict=True)]
    elif isinstance(output, (tuple, list)):
        fields = [_short(value) for value in output]
    else:
        return f"an object of type {type(output).__name__}"
    shown = ", ".join(fields[:4]) + (f" and {len(fields) - 4} more" if len(fields) > 4 else "")
    return f"a {type(output).__name__} ({shown})"


def _short(value: Any) -> str:
    return str([*value.shape]) if isinstance(value, Tensor) else type(value).__name__


def as_units(activation: Tensor, *, channels_last: bool = False) -> Tensor:
    """Reduce an activation to one number per image and unit.

    A convolutional channel is the mean of its activation map, a token sequence the mean of its
    tokens.

    Parameters
    ----------
    activation : Tensor
        [B, C], [B, N, C] (tokens) or [B, C, H, W] (a map).
    channels_last : bool
        A map is [B, H, W, C], as in Swin.

    Returns
    -------
    Tensor
        Shape [B, units]. A [B, C] activation is returned as it is, not copied.

    Raises
    ------
    LayerError
        When the shape is none of these, or the values are not floating-point numbers.
    """
    if activation.is_floating_point():
        if activation.ndim == 2:
            return activation
        if activation.ndim in (3, 4) and is_units(activation):
            return activation.flatten(1)
        if activation.ndim == 3:
            return activation.mean(1)
        if activation.ndim == 4:
            return activation.mean((1, 2) if channels_last else (2, 3))
    raise LayerError(
        f"{describe(activation)} cannot be read as units: floating-point activations of shape "
        "[B, C], [B, N, C] or [B, C, H, W] can"
    )


def combined(parts: Sequence[Tensor]) -> Tensor:
    """Return one [B, units] tensor for the inputs of several heads that are averaged.

    By linearity this is their mean; branches of different widths stay side by side.
    """
    if len(parts) == 1:
        return parts[0]
    if len({part.shape for part in parts}) > 1:
        return torch.cat([*parts], dim=1)
    return torch.stack([*parts]).mean(0)


def is_close(units: Tensor, logits: Tensor, eps: float = 0.0) -> bool:
    """Compare relative to the largest logit: layers of half precision round on the way."""
    finite = logits[logits.isfinite()]
    tolerance = max(_CLOSE, eps) * float(finite.abs().max()) if len(finite) else 0.0
    # The probe itself reports NaN, with the unit and the image that it came from.
    return torch.allclose(units, logits, rtol=0.0, atol=tolerance, equal_nan=True)


def looks_channels_last(shape: torch.Size) -> bool | None:
    """Tell a [B, H, W, C] map from [B, C, H, W] by its square sides; None if they do not say."""
    _, second, third, fourth = shape
    if (second == third) == (third == fourth):
        return None
    return second == third


def is_units(tensor: Tensor) -> bool:
    """Tell whether a tensor is [B, C] already, or [B, C, 1], or [B, C, 1, 1]."""
    return tensor.ndim == 2 or (tensor.ndim > 2 and tensor.shape[2:].numel() == 1)
