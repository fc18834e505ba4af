"""Finding which call of which module makes the logits, and from what.

The feature layer is the input of the layer that makes the logits. That layer is found by running
a few images and comparing what each layer with a weight matrix returned with the model's logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_watermark_guard.models.reading.bottleneck import (
    Run,
    are_shares,
    find_bottleneck,
    logarithms,
)
from pytest_watermark_guard.models.reading.layers import (
    NO_CLASSIFIER,
    Call,
    Tap,
    Trace,
    classifier_names,
    is_pointwise,
)
from pytest_watermark_guard.models.reading.passed import passed_tensors

_RECTIFIERS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.relu,
    functional.relu6,
    functional.gelu,
    functional.silu,
    functional.hardswish,
)
_PROBABILITIES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda logits: logits.softmax(-1),
    lambda logits: logits.log_softmax(-1),
    torch.sigmoid,
)


@dataclass(frozen=True)
class Head:
    """Where the features are.

    Attributes
    ----------
    taps : tuple of Tap
        Mostly the inputs of the layers that make the logits.
    note : str or None
        How they were found, where no layer returns the logits themselves.
    side_by_side : bool
        Several taps hold units of their own; else they are averaged.
    """

    taps: tuple[Tap, ...]
    note: str | None = None
    side_by_side: bool = False


def find_head(
    module: nn.Module, example: Tensor, trace: Trace, output: Tensor, run: Run
) -> Head | None:
    """Return the head that explains the model's logits; None for a backbone without a head.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    example : Tensor
        The batch that was traced; a guess needs two different images.
    trace : Trace
        Of `trace_calls`.
    output : Tensor
        Which of the model's outputs it is about, [B, C].
    run : callable
        Gives that output for a batch.
    """
    named = classifier_names(module)
    if named == NO_CLASSIFIER:
        return None
    logits = output.float()
    candidates = [
        call
        for call in reversed(trace.calls)
        if call.tap.module and call.units is not None and call.units.shape == logits.shape
    ]
    calls = (
        _named_head(candidates, named, logits)
        or _same_head(candidates, logits)
        or _averaged_heads(candidates, logits)
    )
    if calls is None and not _ends_with_identity(module, trace):
        calls = _transformed_head(candidates, logits, trace, module)
        if calls is None:
            return _tried_head(module, example, candidates, named, logits, run)
    if calls is None:
        return None
    return Head(tuple(call.input_tap() for call in calls))


def _named_head(
    candidates: Sequence[Call], named: tuple[str, ...], logits: Tensor
) -> list[Call] | None:
    calls = {
        call.tap.module: call
        for call in reversed(candidates)
        if call.tap.module in named and not call.rectified
    }
    if not calls:
        return None
    together = torch.stack([_units(call) for call in calls.values()]).mean(0)
    return list(calls.values()) if _close(together, logits) else None


def _same_head(candidates: Sequence[Call], logits: Tensor) -> list[Call] | None:
    """Find the last layer whose output is the logits; the innermost where modules are nested."""
    head: Call | None = None
    for call in candidates:
        inside = head is None or call.tap.module.startswith(f"{head.tap.module}.")
        if inside and not call.rectified and _close(_units(call), logits):
            head = call
    return None if head is None else [head]


def _averaged_heads(candidates: Sequence[Call], logits: Tensor) -> list[Call] | None:
    """Find heads whose average or sum is the logits: a distilled pair, or one that is reused."""
    plain = [call for call in candidates if not call.rectified and call.tap.token is None]
    same = [call for call in plain if call.tap.module == plain[0].tap.module]
    for group in (plain[:2], same):
        if len(group) > 1:
            total = torch.stack([_units(call) for call in group]).sum(0)
            if _close(total / len(group), logits) or _close(total, logits):
                return group
    return None


def _transformed_head(
    candidates: Sequence[Call], logits: Tensor, trace: Trace, module: nn.Module
) -> list[Call] | None:
    for call in candidates:
        units = _units(call)
        if call.rectified:
            # As in SqueezeNet; a wider convolution is a backbone's last one.
            pointwise = is_pointwise(module.get_submodule(call.tap.module))
            last = _is_last_with_parameters(call, trace, module)
            if pointwise and last and _close(units, logits):
                return [call]
        elif any(_close(transform(units), logits) for transform in _PROBABILITIES) or (
            _is_last_with_parameters(call, trace, module) and _proportional(units, logits)
        ):
            return [call]
    return None


def _is_last_with_parameters(call: Call, trace: Trace, module: nn.Module) -> bool:
    """Tell that no other layer with weights follows, such as the norm of a last block."""
    modules = dict(module.named_modules())
    for later in reversed(trace.calls):
        submodule = modules[later.tap.module]
        if next(submodule.children(), None) is None and submodule._parameters:
            return later.tap.module == call.tap.module
    return False


def _ends_with_identity(module: nn.Module, trace: Trace) -> bool:
    """Tell whether the head was replaced by an Identity, the usual way to cut it off."""
    modules = dict(module.named_modules())
    leaves = (
        modules[call.tap.module]
        for call in reversed(trace.calls)
        if next(modules[call.tap.module].children(), None) is None
    )
    return isinstance(next(leaves, None), nn.Identity)


def _tried_head(
    module: nn.Module,
    example: Tensor,
    candidates: Sequence[Call],
    named: tuple[str, ...],
    logits: Tensor,
    run: Run,
) -> Head | None:
    """Take what the model calls its classifier, or the last tensor on which the logits depend."""
    for call in candidates:
        if call.tap.module in named:
            return _guess(call, "the model names it as its classifier")
    plain = [call for call in candidates if not call.rectified and call.tap.token is None]
    plain = [call for call in plain if call.shape is not None and len(call.shape) == 2]
    if are_shares(logits):
        run, logits = _logarithmic(run), logarithms(logits)
    if len(example) < 2 or _close(logits[:1].expand_as(logits), logits):
        return None
    if plain and any(_close(act(_units(plain[0])), logits) for act in _RECTIFIERS):
        return None  # an activated hidden layer, with the head cut off behind it
    taps = find_bottleneck(passed_tensors(module, example, run), example, logits)
    if taps:
        first = taps[0]
        place = f"the {'input' if first.of_input else 'output'} of {first.module!r}"
        note = f"features: found by trying to be {place}: on it alone the model's output depends"
        return Head(taps, note, side_by_side=True)
    # Several projections that only together determine the output.
    for size in range(2, min(3, len(plain)) + 1):
        if _determine_output(module, example, [call.tap for call in plain[:size]], run):
            return _guess(plain[0], "it determines the model's output")
    return None


def _logarithmic(run: Run) -> Run:
    return lambda x: logarithms(run(x))


def _guess(call: Call, reason: str) -> Head:
    return Head(
        (call.input_tap(),),
        f"features: guessed to be the input of {call.tap.module!r}, as {reason}; "
        "what it returns is not the logits themselves",
    )


def _determine_output(module: nn.Module, example: Tensor, taps: Sequence[Tap], run: Run) -> bool:
    """Tell whether all images get one output when they get the first one's projections."""
    counts: dict[str, int] = {}

    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def overwrite(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
            index = counts[name] = counts.get(name, -1) + 1
            if any(tap.module == name and tap.call == index for tap in taps):
                return output[:1].expand_as(output).clone()  # type: ignore[no-any-return]
            return None

        return overwrite

    handles = []
    try:
        for name in {tap.module for tap in taps}:
            handles.append(module.get_submodule(name).register_forward_hook(hook_for(name)))
        output = run(example)
    finally:
        for handle in handles:
            handle.remove()
    return _close(output[:1].expand_as(output), output)


def _units(call: Call) -> Tensor:
    assert call.units is not None
    return call.units


def _close(units: Tensor, logits: Tensor) -> bool:
    """Compare relative to the largest logit: layers of half precision round on the way."""
    finite = logits[logits.isfinite()]
    tolerance = 1e-4 * float(finite.abs().max()) if len(finite) else 0.0
    # The probe itself reports NaN, with the unit and the image that it came from.
    return torch.allclose(units, logits, rtol=0.0, atol=tolerance, equal_nan=True)


def _proportional(units: Tensor, logits: Tensor) -> bool:
    norm = float((units * units).sum())
    scale = float((units * logits).sum()) / norm if norm else 0.0
    return scale > 0 and _close(units * scale, logits)
