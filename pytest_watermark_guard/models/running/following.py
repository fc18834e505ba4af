"""Which layer's output goes straight to which other layer, seen in one forward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Followers(NamedTuple):
    """What one forward pass showed.

    Attributes
    ----------
    pairs : dict of str to str
        Name of a layer -> name of the layer that its output goes to, unchanged.
    calls : Counter of str
        How often each of them ran: a layer that runs twice may mean something else each time.
    shapes : dict of str to torch.Size
        Of the inputs of all that were looked at as `first`.
    """

    pairs: dict[str, str]
    calls: Counter[str]
    shapes: dict[str, torch.Size]


def find_followers(
    module: nn.Module,
    example: Tensor,
    first: Callable[[nn.Module], bool],
    then: Callable[[nn.Module], bool],
) -> Followers:
    """Run a model once and see which output goes where.

    Parameters
    ----------
    module : torch.nn.Module
        Run in its mode, outside ``torch.inference_mode``.
    example : Tensor
        A batch of input.
    first, then : callable
        Which layers are looked at. Those with hooks or a patched ``forward`` do more than their
        class says, and are not.
    """
    produced: dict[int, tuple[str, Tensor, int]] = {}
    found = Followers({}, Counter(), {})

    def after(name: str, _module: nn.Module, args: Any, output: Any) -> None:
        found.calls[name] += 1
        if args:
            found.shapes[name] = args[0].shape
        # Held, so that no other tensor gets its id.
        produced[id(output)] = name, output, output._version

    def before(name: str, _module: nn.Module, args: Any) -> None:
        found.calls[name] += 1
        if args and (seen := produced.get(id(args[0]))) is not None:
            source, output, version = seen
            if output._version == version:  # else something was added in place
                found.pairs[source] = name

    handles: list[Any] = []
    try:
        for name, layer in module.named_modules():
            if not _is_plain(layer):
                continue
            if first(layer):
                handles.append(layer.register_forward_hook(partial(after, name)))
            elif then(layer):
                handles.append(layer.register_forward_pre_hook(partial(before, name)))
        module(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_plain(module: nn.Module) -> bool:
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and "forward" not in module.__dict__
