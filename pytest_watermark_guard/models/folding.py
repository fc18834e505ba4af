"""Batch norm into the convolution before it: in evaluation mode both are one affine map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn


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
    pairs = _followers(module, example)
    folded = 0
    for convolution, norm in pairs.items():
        if convolution in keep or norm in keep:
            continue
        normalised = module.get_submodule(norm)
        _fold(module.get_submodule(convolution), normalised)
        parent, _, attribute = norm.rpartition(".")
        setattr(module.get_submodule(parent), attribute, _rest_of(normalised))
        folded += 1
    return folded


def _followers(module: nn.Module, example: Tensor) -> dict[str, str]:
    """Map each foldable convolution to the batch norm that its output goes to."""
    produced: dict[int, tuple[str, Any]] = {}
    pairs: dict[str, str] = {}
    calls: Counter[str] = Counter()
    handles = []

    def after_convolution(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[name] += 1
            produced[id(output)] = name, output  # held, so that no other tensor gets its id

        return hook

    def before_norm(name: str) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            calls[name] += 1
            source, _ = produced.get(id(args[0]), ("", None)) if args else ("", None)
            if source:
                pairs[source] = name

        return hook

    try:
        for name, submodule in module.named_modules():
            if _is_plain(submodule) and type(submodule) is nn.Conv2d:
                handles.append(submodule.register_forward_hook(after_convolution(name)))
            elif _is_plain(submodule) and _is_batch_norm(submodule):
                handles.append(submodule.register_forward_pre_hook(before_norm(name)))
        module(example)
    finally:
        for handle in handles:
            handle.remove()
    # A layer that runs twice may mean something else each time.
    return {c: n for c, n in pairs.items() if calls[c] == calls[n] == 1}


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a layer does what its class says: hooks and patches do more."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and "forward" not in module.__dict__


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
