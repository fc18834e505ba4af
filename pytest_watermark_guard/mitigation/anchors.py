"""Where in a model its features can be changed, and the hooks that change them there.

The best place is what a module well below the head returns: nobody who puts another head on takes
it away. Whether zeroing channels there zeroes the very units at the head's input, and leaves the
others alone, is not guessed from the architecture but tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.mitigation.intervention import Intervention
from pytest_watermark_guard.models.identity import OWN_BUFFER
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.reading.layers import Trace, trace_calls

_AXIS = f"{OWN_BUFFER}axis"
_PREPARE = "__prepare_scriptable__"  # what torch.jit.script calls, of a module that has it
_TOLERANCE = 1e-5  # of the largest feature: another order of summation, and no more


@dataclass(frozen=True)
class Anchor:
    """One tensor of a forward pass whose channels are the features."""

    module: str  # qualified name, empty for the model itself
    of_input: bool  # the module's first tensor argument, else what it returns
    dim: int  # axis of the units: 1 or -1

    def __str__(self) -> str:
        what = "input" if self.of_input else "output"
        return f"the {what} of {self.module!r}" if self.module else f"the model's {what}"

    def attach(self, root: nn.Module, intervention: Intervention) -> Any:
        """Change features here from now on; returns a handle for `detach`."""
        module = root.get_submodule(self.module)
        like = next(chain(root.parameters(), root.buffers()), torch.empty(0))
        for name, tensor in intervention.tensors().items():
            module.register_buffer(OWN_BUFFER + name, _like(tensor, like), persistent=False)
        if not self.of_input:
            module.__dict__[_AXIS] = self.dim
            return module.register_forward_hook(type(intervention).hook, prepend=True)
        module.__dict__[_PREPARE] = partial(_refuse_scripting, str(self))
        change = partial(_change, dim=self.dim, transform=type(intervention).transform)
        return self.hook(root, change)

    def hook(self, root: nn.Module, change: Callable[[nn.Module, Tensor], Tensor]) -> Any:
        """Put `change(module, features)` in place of the features here; returns torch's handle."""
        module = root.get_submodule(self.module)
        # Before all other hooks, so that these read the changed features, as the head does.
        if self.of_input:
            return module.register_forward_pre_hook(
                partial(_change_input, change=change), prepend=True, with_kwargs=True
            )
        return module.register_forward_hook(partial(_change_output, change=change), prepend=True)

    def detach(self, root: nn.Module, handle: Any) -> None:
        """Undo `attach`."""
        handle.remove()
        module = root.get_submodule(self.module)
        for name in [name for name in module._buffers if name.startswith(OWN_BUFFER)]:
            delattr(module, name)
        for name in (_AXIS, _PREPARE):
            module.__dict__.pop(name, None)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return a tensor on the other's device, and in its precision if both have one."""
    floating = tensor.is_floating_point() and other.is_floating_point()
    return tensor.to(other.device, other.dtype if floating else None)


def _refuse_scripting(place: str) -> None:
    raise MaskError(
        f"a model that is masked at {place} cannot be scripted, as TorchScript knows no hooks that "
        "take all arguments of a call: use torch.jit.trace, or script what fold_mask returns"
    )


def _change(module: nn.Module, value: Tensor, dim: int, transform: Any) -> Tensor:
    tensors = {
        name.removeprefix(OWN_BUFFER): tensor
        for name, tensor in module._buffers.items()
        if name.startswith(OWN_BUFFER)
    }
    # Axes by non-negative numbers: ONNX knows no others.
    axes = dim % value.ndim, value.ndim - 1
    return transform(value.transpose(*axes), tensors).transpose(*axes)  # type: ignore[no-any-return]


def _change_output(module: nn.Module, _args: Any, output: Tensor, change: Any) -> Tensor:
    return change(module, output)  # type: ignore[no-any-return]


def _change_input(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], change: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    for index, value in enumerate(args):
        if isinstance(value, Tensor):
            return (*args[:index], change(module, value), *args[index + 1 :]), kwargs
    for name, value in kwargs.items():
        if isinstance(value, Tensor):
            return args, {**kwargs, name: change(module, value)}
    return args, kwargs


def find_anchors(
    root: nn.Module, example: Tensor, intervention: Intervention, recorder: ActivationRecorder
) -> tuple[Anchor, ...]:
    """Return where to change the features of a model that is in evaluation mode and eager.

    That is one place that only rebuilding the backbone takes away if there is any; else the inputs
    of the head, or of the modules that hold it. Where none of them changes the features as the
    intervention says, a `MaskError` is raised. `recorder`, of the layer "features", is not entered.
    """
    with recorder:
        plain = recorder(example)["features"]
    heads = list(recorder.head_modules)
    for anchors in _candidates(trace_calls(root, example), heads, plain.shape[-1]):
        try:
            if all(
                _take_effect(root, example, intervention, recorder, anchors, randomised)
                for randomised in (False, True)
            ):
                return anchors
        except (RuntimeError, IndexError):  # this tensor is of another shape than the features
            continue
    where = ", ".join(map(repr, heads)) or "the model's output"
    raise MaskError(
        f"{type(root).__name__}: found no place before {where} where the features can be changed "
        "one by one; its features are those of several heads, or are computed inside the head"
    )


def _candidates(trace: Trace, heads: Sequence[str], width: int) -> Iterator[tuple[Anchor, ...]]:
    parents = [ancestors(head) for head in heads]
    end = min(
        (i for i, call in enumerate(trace.calls) if call.tap.module in heads),
        default=len(trace.calls),
    )
    names: dict[tuple[str, int], None] = {}
    for call in reversed(trace.calls[:end]):
        shape = call.shape or torch.Size()
        for dim in (-1, 1):
            if len(shape) in (2, 3, 4) and shape[dim] == width and (dim == -1 or len(shape) > 2):
                names[call.tap.module, dim] = None

    def lost(name: str) -> int:
        """Count the modules whose replacement would take this one away."""
        return sum(is_within(name, parent) for chain in parents for parent in chain)

    for name, dim in sorted(names, key=lambda key: lost(key[0])):
        yield (Anchor(name, False, dim),)
    for depth in range(max(map(len, parents), default=0)):
        level = dict.fromkeys(chain[min(depth, len(chain) - 1)] for chain in parents)
        for dim in (-1, 1):
            yield tuple(Anchor(name, True, dim) for name in level)


def ancestors(name: str) -> list[str]:
    """Return a module and those that hold it, by qualified name, outermost first."""
    parts = name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))] if name else []


def is_within(name: str, parent: str) -> bool:
    """Tell whether a qualified name is that of `parent` or of a module inside it."""
    return name == parent or name.startswith(f"{parent}.")


def _take_effect(
    root: nn.Module,
    example: Tensor,
    intervention: Intervention,
    recorder: ActivationRecorder,
    anchors: Sequence[Anchor],
    randomised: bool,
) -> bool:
    """Tell whether hooks at the anchors change the features as the intervention does.

    If `randomised`, positive random numbers stand in for what the model computes there: units
    that are dead on the example would prove nothing.
    """

    def read() -> Tensor:
        # Entered after the hooks under test, so that these work on the random numbers.
        with ExitStack() as stack:
            for anchor in anchors if randomised else ():
                stack.enter_context(anchor.hook(root, _random_values))
            stack.enter_context(recorder)
            return recorder(example)["features"]

    plain = read()
    if randomised and not bool((plain != 0).all()):
        return False  # a module between here and the head sets features to zero by itself
    with attached(root, anchors, intervention):
        changed = read()
    return follows(intervention, plain, changed)


def _random_values(_module: nn.Module, value: Tensor) -> Tensor:
    numbers = torch.rand(value.shape, generator=torch.Generator().manual_seed(0))
    return (0.5 + numbers).to(value)


@contextmanager
def attached(
    root: nn.Module, anchors: Sequence[Anchor], intervention: Intervention
) -> Iterator[None]:
    """Change the features at these places within the block."""
    with ExitStack() as stack:
        for anchor in anchors:
            stack.callback(anchor.detach, root, anchor.attach(root, intervention))
        yield


def follows(intervention: Intervention, plain: Tensor, changed: Tensor, dim: int = -1) -> bool:
    """Tell whether `changed` is what an intervention makes of the features `plain`."""
    plain, changed = plain.movedim(dim, -1), changed.movedim(dim, -1)
    tensors = {name: _like(tensor, plain) for name, tensor in intervention.tensors().items()}
    expected = type(intervention).transform(plain, tensors)
    made_zero = (expected == 0) & (plain != 0)
    finite = plain[plain.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    tolerance = max(_TOLERANCE, 4 * torch.finfo(plain.dtype).eps) * scale
    close = torch.allclose(changed, expected, rtol=0.0, atol=tolerance)
    return close and not bool(changed[made_zero].any())
