"""Reading what a model or a layer returns as one number per image and unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pytest_watermark_guard.errors import LayerError

_BACKBONE_FIELDS = ("pooler_output", "last_hidden_state")


def main_tensor(output: Any) -> tuple[Tensor, bool]:
    """Return the tensor that a model's output is about, and whether it marks a backbone.

    Raises
    ------
    LayerError
        When no tensor can be read as logits, a feature map or tokens.
    """
    if isinstance(output, Tensor):
        candidates = [output]
    elif isinstance(named := _field(output, "logits"), Tensor):
        candidates = [named]
    elif isinstance(pooled := _backbone_field(output), Tensor):
        return pooled, True
    elif isinstance(output, (tuple, list)):
        candidates = [item for item in output if isinstance(item, Tensor)]
    elif isinstance(output, Mapping):
        candidates = [item for item in output.values() if isinstance(item, Tensor)]
    else:
        candidates = []
    for tensor in candidates:
        if tensor.ndim == 2 and tensor.is_floating_point():
            return tensor, False
    # A dictionary of maps is a dense prediction, for instance a segmentation, not a backbone.
    if not isinstance(output, Mapping):
        for tensor in candidates[:1]:
            if tensor.ndim in (3, 4) and tensor.is_floating_point():
                return tensor, True
    raise LayerError(
        f"the model returned {describe(output)}, where logits of shape [B, C] were expected: "
        "wrap the model so that forward returns them"
    )


def _field(output: Any, name: str) -> Any:
    if isinstance(output, Mapping):
        return output.get(name)
    return None if isinstance(output, Tensor) else getattr(output, name, None)


def _backbone_field(output: Any) -> Any:
    fields = (_field(output, name) for name in _BACKBONE_FIELDS)
    return next((value for value in fields if value is not None), None)


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


def looks_channels_last(shape: torch.Size) -> bool | None:
    """Tell a [B, H, W, C] map from [B, C, H, W] by its square sides; None if they do not say."""
    _, second, third, fourth = shape
    if (second == third) == (third == fourth):
        return None
    return second == third
