"""Writing a mask into the head's weights, so that inference has nothing left to compute."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.mitigation.anchors import attached, find_anchors
from pytest_watermark_guard.mitigation.apply import applied_mask, check_fits, examined, remove_mask
from pytest_watermark_guard.mitigation.intervention import Intervention
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.reading.outputs import vector_outputs
from pytest_watermark_guard.models.state import unwrapped

_TOLERANCE = 1e-4  # of the largest logit: the matrices are multiplied in another order


def fold_mask(
    model: nn.Module,
    mask: Intervention | None = None,
    *,
    example: Tensor | None = None,
    strict: bool = True,
) -> nn.Module:
    """Return a copy whose head ignores the masked features by its weights alone.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier that ends in a linear layer or a 1x1 convolution.
    mask : FeatureMask or FeatureErasure, optional
        Default: the one that the model carries; the copy carries none any more.
    example : Tensor, optional
        Input [B, C, H, W], as for `apply_mask`.
    strict : bool, default True
        As for `apply_mask`.

    Returns
    -------
    torch.nn.Module
        A deep copy without hooks of ours, of the same architecture; its logits are those of the
        masked model but for rounding, which is checked on the example.

    Raises
    ------
    MaskError
        If the mask is another model's, or the model has no head that it can be written into.
    """
    carried = applied_mask(model)
    chosen = carried if mask is None else mask
    if chosen is None:
        raise MaskError(f"{type(unwrapped(model)).__name__} carries no mask: pass one to fold")
    root = copy.deepcopy(unwrapped(model))
    if carried is not None:
        remove_mask(root)
    with examined(root, example) as (recorder, inputs):
        # A mask that the model carries was checked when it was applied.
        check_fits(chosen, recorder, inputs, strict and mask is not None)
        names = dict.fromkeys(recorder.head_modules)
        heads = [_foldable(root, name, chosen.width) for name in names]
        if not heads:
            raise MaskError(f"{type(root).__name__} is a backbone: it has no head to fold into")
        with attached(root, find_anchors(root, inputs, chosen, recorder), chosen):
            expected = _outputs(root, inputs, recorder)
        for head in heads:
            _fold(head, chosen)
        for name, logits in _outputs(root, inputs, recorder).items():
            scale = float(expected[name].abs().max())
            allowed = scale * max(_TOLERANCE, 8 * torch.finfo(logits.dtype).eps)
            if not torch.allclose(logits, expected[name], rtol=0.0, atol=allowed):
                off = float((logits - expected[name]).abs().max())
                raise MaskError(
                    f"{type(root).__name__}: with the mask in the weights of {', '.join(names)} "
                    f"the {f'output {name!r} is' if name else 'logits are'} off by {off:.1e}, so "
                    "something else reads the features as well; use apply_mask"
                )
    return root


def _outputs(root: nn.Module, inputs: Tensor, recorder: ActivationRecorder) -> dict[str, Tensor]:
    """Return the logits under the empty name, and every output of shape [B, C] under its own."""
    output = root(inputs)
    main = recorder.main_output(output, len(inputs))
    return {"": main, **vector_outputs(output, len(inputs))}


def _foldable(root: nn.Module, name: str, width: int) -> nn.Linear | nn.Conv2d:
    module = root.get_submodule(name)
    linear = isinstance(module, nn.Linear) and module.in_features == width
    pointwise = (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.padding == (0, 0)
        and module.groups == 1
        and module.in_channels == width
    )
    if not (linear or pointwise):
        raise MaskError(
            f"{type(root).__name__}: the head {name!r} is a {type(module).__name__}, and a mask "
            f"can be folded into a Linear or a 1x1 Conv2d of {width} inputs only; use apply_mask"
        )
    plain = _plain(root, name, module)  # type: ignore[arg-type]
    if type(plain.weight) not in (Tensor, nn.Parameter):
        raise MaskError(
            f"{type(root).__name__}: the weight of the head {name!r} is a "
            f"{type(plain.weight).__name__}, which cannot be overwritten; fold the mask before "
            "the model is quantised, or use apply_mask"
        )
    return plain


def _plain(root: nn.Module, name: str, module: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Let a normed weight be the plain tensor that it is now: a mask changes its norm."""
    for key, remove in (("weight_g", remove_weight_norm), ("weight_orig", remove_spectral_norm)):
        if key in module._parameters:
            remove(module)
    if not parametrize.is_parametrized(module, "weight"):
        return module
    # Not by torch's own way to remove a parametrization: it changes the class, which a copy shares
    # with the user's model.
    weight, bias = module.weight.detach(), module.bias is not None
    plain: nn.Linear | nn.Conv2d
    if isinstance(module, nn.Linear):
        plain = nn.Linear(module.in_features, module.out_features, bias)
    else:
        plain = nn.Conv2d(module.in_channels, module.out_channels, 1, bias=bias)
        plain.stride = module.stride
    plain.weight = nn.Parameter(weight.clone())
    plain.bias = None if module.bias is None else nn.Parameter(module.bias.detach().clone())
    parent, _, child = name.rpartition(".")
    root.get_submodule(parent).register_module(child, plain.train(module.training))
    return plain


def _fold(head: nn.Linear | nn.Conv2d, mask: Intervention) -> None:
    old = head.weight
    weight, bias = mask.fold_into(old.detach().flatten(1), head.bias)
    head.weight = nn.Parameter(weight.view_as(old).contiguous(), old.requires_grad)
    if bias is not head.bias:
        head.bias = None if bias is None else nn.Parameter(bias.detach(), old.requires_grad)
