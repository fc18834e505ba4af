"""A convolution and the activation after it in one kernel of oneDNN, on a CPU.

The activation costs no pass over memory of its own, and the weights are laid out for the kernel
once and not in every call. `torch.compile` does the same, at the price of compiling; the operators
are those that it calls. A torch that has none of them raises, and the model is run in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.running.following import find_followers

_DONE = "_wm_activated_by"


class _Kernel(NamedTuple):
    """What oneDNN calls an activation, with its parameters."""

    name: str = "none"
    scalars: tuple[float, ...] = ()
    algorithm: str = ""


_KERNELS: dict[type[nn.Module], Callable[[Any], _Kernel]] = {
    nn.ReLU: lambda _: _Kernel("relu"),
    nn.ReLU6: lambda _: _Kernel("hardtanh", (0.0, 6.0)),
    nn.Hardswish: lambda _: _Kernel("hardswish"),
    nn.SiLU: lambda _: _Kernel("swish"),
    nn.GELU: lambda gelu: _Kernel("gelu", algorithm=gelu.approximate),
    nn.LeakyReLU: lambda leaky: _Kernel("leaky_relu", (leaky.negative_slope,)),
}


def fuse_convolutions(module: nn.Module, example: Tensor, keep: Collection[str] = ()) -> int:
    """Have convolutions compute the activation that directly follows; works in place.

    Parameters
    ----------
    module : torch.nn.Module
        A copy on a CPU that may be changed, in evaluation mode and in its final precision. Its
        layers stay, with another ``forward``: it can be run, and nothing else.
    example : Tensor
        A batch of input, to see which convolution's output goes to which activation. Of the usual
        size: for another one, oneDNN may lay out the weights anew in every call.
    keep : collection of str
        Names of modules whose own input or output is wanted.

    Returns
    -------
    int
        How many convolutions were changed.

    Notes
    -----
    The same numbers but for rounding, as long as nothing else reads the convolution's output;
    whoever fuses compares the activations afterwards.
    """
    found = find_followers(module, example, _is_fusible, lambda layer: type(layer) in _KERNELS)
    layers = dict(module.named_modules())
    followers = {
        convolution: layers[activation]
        for convolution, activation in found.pairs.items()
        if found.calls[convolution] == 1 and not {convolution, activation} & set(keep)
    }
    for name, shape in found.shapes.items():
        _fuse(layers[name], followers.get(name), shape)
    for activation in set(followers.values()):
        activation.forward = partial(_unless_done, activation)
    return len(found.shapes)


def _is_fusible(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def _fuse(convolution: Any, activation: nn.Module | None, shape: torch.Size) -> None:
    kernel = _Kernel() if activation is None else _KERNELS[type(activation)](activation)
    geometry = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
    weight = torch.ops.mkldnn._reorder_convolution_weight(
        convolution.weight.detach(), *geometry, shape
    )

    def forward(x: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, convolution.bias, *geometry, *kernel
        )
        if activation is not None:
            setattr(output, _DONE, activation)
        return output

    convolution.forward = forward


def _unless_done(activation: nn.Module, x: Tensor) -> Tensor:
    """Apply an activation, which may follow other layers too, where no convolution has."""
    done = vars(x).pop(_DONE, None) is activation  # once: it may be added to, and activated again
    return x if done else type(activation).forward(activation, x)
