"""One model of a library: how it is built, and what its numbers are by the library's own ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

Reading = Callable[[Any, Tensor], Tensor]
Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Case:
    """A model and what to hold the product against.

    Attributes
    ----------
    name : str
    build : callable
        Returns the model, with random weights.
    features : callable or None
        From the model and its input to the features [B, C]; None: it has none that could be read,
        and the product must say so.
    logits : callable or None
        The same for the logits; None for an encoder: its features are its output.
    transform : callable or None
        From the model to the library's own function from a picture to [C, H, W]; None: the library
        has none for this model, and the product must say what it assumed.
    preprocess, outputs : Any
        Passed to the product as a user would.
    refused : bool
        There is nothing to gate (boxes, masks, text beside pictures): the product must refuse.
    """

    name: str
    build: Callable[[], Any]
    features: Reading | None = None
    logits: Reading | None = lambda model, x: model(x)
    transform: Callable[[Any], Transform] | None = None
    preprocess: Any = "auto"
    outputs: str = "auto"
    refused: bool = False


def input_of(*path: str) -> Reading:
    """Return the input of a module that is named by hand; of several, their mean."""

    def read(model: nn.Module, x: Tensor) -> Tensor:
        parts = []
        for name in path:
            taken: list[Tensor] = []
            module = model.get_submodule(name)
            handle = module.register_forward_pre_hook(lambda _, args, t=taken: t.append(args[0]))
            try:
                model(x)
            finally:
                handle.remove()
            parts.append(vector(taken[-1]))
        return torch.stack(parts).mean(0)

    return read


def vector(tensor: Tensor) -> Tensor:
    """Read maps and tokens as one number for each channel, as heads of 1x1 filters average them."""
    if tensor.ndim == 4:
        return tensor.mean((2, 3))
    return tensor.mean(1) if tensor.ndim == 3 else tensor


def awake(model: nn.Module) -> nn.Module:
    """Give parameters that are constant small random numbers, as training would.

    A head or a residual branch that begins at zero gives all pictures the same output, by which
    nothing can be told.
    """
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if type(parameter.data) is not Tensor or parameter.is_meta:  # quantised, offloaded
                continue
            constant = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            if parameter.is_floating_point() and constant:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def last_linear(model: nn.Module, x: Tensor) -> Tensor:
    """Return the input of the last linear layer, in the order in which layers are made."""
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    return input_of(names[-1])(model, x)


def itself(model: Any, x: Tensor) -> Tensor:
    """Return the output: the features of an encoder."""
    return model(x)
