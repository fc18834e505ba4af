"""Batch norm into the convolution before it: in evaluation mode both are one affine map."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.running.following import find_followers


def fold_batch_norms(module: nn.Module, example: Tensor, keep: Collection[str] = ()) -> int:
    """Fold every batch norm that directly follows a convolution; works in place.

    Parameters
    ----------
    module : torch.nn.Module
        A copy that may be changed, in evaluation mode. A folded batch norm becomes an
        ``nn.Identity`` under the same name, so that names and hooks stay good.
    example : Tensor
        A batch of input, to see which convolution's output goes to which batch norm.
    keep : collection of str
        Names of modules whose own input or output is wanted: they are left alone.

    Returns
    -------
    int
        How many batch norms were folded.

    Notes
    -----
    Exact but for rounding, as long as nothing else reads the convolution's output; whoever folds
    compares the activations afterwards.
    """
    pairs, calls, _ = find_followers(
        module, example, lambda layer: type(layer) is nn.Conv2d, _is_batch_norm
    )
    folded = 0
    for convolution, norm in pairs.items():
        once = calls[convolution] == calls[norm] == 1
        if not once or convolution in keep or norm in keep:
            continue
        normalised = module.get_submodule(norm)
        _fold(module.get_submodule(convolution), normalised)
        parent, _, attribute = norm.rpartition(".")
        setattr(module.get_submodule(parent), attribute, _rest_of(normalised))
        folded += 1
    return folded


def _is_batch_norm(module: nn.Module) -> bool:
    known = type(module) is nn.BatchNorm2d or _has_activation(module)
    return known and module.running_mean is not None


def _has_activation(module: nn.Module) -> bool:
    """Tell whether it is timm's batch norm with its activation inside."""
    kind = type(module)
    return kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm.")


def _rest_of(norm: nn.Module) -> nn.Module:
    return nn.Sequential(norm.drop, norm.act) if _has_activation(norm) else nn.Identity()  # type: ignore[arg-type]


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = convolution.weight
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    scale = gamma.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    bias = (
        -norm.running_mean.double()
        if convolution.bias is None
        else (convolution.bias.double() - norm.running_mean.double())
    )
    folded = (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype)
    convolution.weight = nn.Parameter(folded, requires_grad=False)
    shift = (bias * scale + beta.double()).to(weight.dtype)
    convolution.bias = nn.Parameter(shift, requires_grad=False)
