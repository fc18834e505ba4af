"""Finding which call of which module makes the logits, and from what.

The feature layer is the input of the layer that makes the logits. That layer is found by running
a few images and comparing what each layer with a weight matrix returned with the model's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.reading.bottleneck import (
    Run,
    are_shares,
    find_bottleneck,
    logarithms,
)
from pytest_watermark_guard.models.reading.combining import (
    PROBABILITIES,
    are_activated,
    note_on_parts,
)
from pytest_watermark_guard.models.reading.joint_heads import (
    determine,
    inputs_of,
    is_vector,
    joint_heads,
    repeated_head,
)
from pytest_watermark_guard.models.reading.layers import (
    NO_CLASSIFIER,
    Call,
    Tap,
    Trace,
    classifier_names,
    classifier_owner,
    is_pointwise,
    units_of,
)
from pytest_watermark_guard.models.reading.outputs import combined, is_close
from pytest_watermark_guard.models.reading.passed import are_same, passed_tensors


@dataclass(frozen=True)
class Head:
    """Where the features are.

    Attributes
    ----------
    taps : tuple of tuple of Tap
        Mostly the inputs of the layers that make the logits. Those of one group are averaged;
        groups are side by side.
    note : str or None
        How they were found, where no layer returns the logits themselves.
    """

    taps: tuple[tuple[Tap, ...], ...]
    note: str | None = None


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
        if not call.is_network
    ]
    layers = _innermost(candidates)
    calls = (
        _named_head(candidates, named, logits)
        or _same_head(candidates, logits)
        or repeated_head(module, layers, logits, torch.finfo(output.dtype).eps)
    )
    if not calls and _is_cut_off(module, trace, layers):
        return None
    calls = calls or _transformed_head(layers, logits, trace, module, example, run)
    if calls:
        return Head((tuple(call.input_tap() for call in calls),))
    if are_shares(logits):
        run, logits = _logarithmic(run), logarithms(logits)
    return (
        _joint_head(module, example, layers, logits, run)
        or _guessed_head(module, example, candidates, named, run)
        or _found_head(module, example, layers, logits, run)
    )


def _innermost(candidates: Sequence[Call]) -> list[Call]:
    """Leave out modules with parameters of their own around others that return as much."""
    names = {call.tap.module for call in candidates}
    around = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
    return [call for call in candidates if call.tap.module not in around]


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
    together = torch.stack([units_of(call) for call in calls.values()]).mean(0)
    return list(calls.values()) if is_close(together, logits) else None


def _same_head(candidates: Sequence[Call], logits: Tensor) -> list[Call] | None:
    """Find the last layer whose output is the logits; the innermost where modules are nested."""
    head: Call | None = None
    for call in candidates:
        inside = head is None or call.tap.module.startswith(f"{head.tap.module}.")
        if inside and not call.rectified and is_close(units_of(call), logits):
            head = call
    return None if head is None else [head]


def _transformed_head(
    candidates: Sequence[Call],
    logits: Tensor,
    trace: Trace,
    module: nn.Module,
    example: Tensor,
    run: Run,
) -> list[Call] | None:
    """Find a layer whose output the model scales, or makes probabilities of."""

    def fits(call: Call) -> bool:
        units = units_of(call)
        if call.rectified:
            # As in SqueezeNet; a wider convolution is a backbone's last one.
            pointwise = is_pointwise(module.get_submodule(call.tap.module))
            last = _is_last_with_parameters(call, trace, module)
            return pointwise and last and is_close(units, logits)
        return any(is_close(transform(units), logits) for transform in PROBABILITIES) or (
            _is_last_with_parameters(call, trace, module) and _proportional(units, logits)
        )

    for call in candidates:
        # Another network may answer these few images alike.
        if fits(call) and determine(module, example, {call.tap.module: [call]}, run):
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


def _is_cut_off(module: nn.Module, trace: Trace, candidates: Sequence[Call]) -> bool:
    """Tell whether the head was replaced by an Identity, the usual way to cut it off.

    One behind a layer that returns as many units as the model is no such one.
    """
    heads = {call.tap.module for call in candidates if is_vector(call)}
    passed = False
    for call in reversed(trace.calls):
        submodule = module.get_submodule(call.tap.module)
        if next(submodule.children(), None) is not None:
            continue
        if not isinstance(submodule, (nn.Identity, nn.Dropout)):
            return passed and call.tap.module not in heads
        passed = passed or isinstance(submodule, nn.Identity)
    return passed


def _joint_head(
    module: nn.Module, example: Tensor, candidates: Sequence[Call], logits: Tensor, run: Run
) -> Head | None:
    """Take what goes into each of several layers, or the one tensor that determines the others."""
    layers = joint_heads(module, example, candidates, logits, run)
    if not layers:
        return None
    inputs = inputs_of(module, example, layers, run)
    among = (
        candidate
        for candidate in passed_tensors(module, example, run)
        if any(are_same(candidate.tensors[0], value) for value in inputs.values())
    )
    if len(layers) > 1 and (taps := find_bottleneck(among, example, logits)):
        return _found(taps)
    groups: dict[tuple[Tap, ...], Tensor] = {}
    for calls in layers.values():
        group = tuple(call.input_tap() for call in calls)
        units = combined([tap.read(inputs[tap]).float() for tap in group])
        if not any(are_same(units, other) for other in groups.values()):
            groups[group] = units
    sizes = ((taps[0].module, len(taps), units.shape[1]) for taps, units in groups.items())
    return Head(tuple(groups), note_on_parts(sizes))


def _guessed_head(
    module: nn.Module, example: Tensor, candidates: Sequence[Call], named: tuple[str, ...], run: Run
) -> Head | None:
    """Take what the model calls its classifier, if it is all of the model or all that counts."""
    owner = module.get_submodule(classifier_owner(module) or "")
    whole = {*owner.parameters()} == {*module.parameters()}
    for call in candidates:
        name = call.tap.module
        if name in named and (whole or determine(module, example, {name: [call]}, run)):
            return Head(
                ((call.input_tap(),),),
                f"features: guessed to be the input of {name!r}, as the model names it as its "
                "classifier; what it returns is not the logits themselves",
            )
    return None


def _found_head(
    module: nn.Module, example: Tensor, candidates: Sequence[Call], logits: Tensor, run: Run
) -> Head | None:
    """Take the last tensor on which the logits depend."""
    plain = [call for call in candidates if not call.rectified and call.tap.token is None]
    plain = [call for call in plain if call.shape is not None and len(call.shape) == 2]
    if plain and are_activated([units_of(plain[0])], logits):
        return None  # an activated hidden layer, with the head cut off behind it
    taps = find_bottleneck(passed_tensors(module, example, run), example, logits)
    return _found(taps) if taps else None


def _logarithmic(run: Run) -> Run:
    return lambda x: logarithms(run(x))


def _found(taps: tuple[Tap, ...]) -> Head:
    first = taps[0]
    place = f"the {'input' if first.of_input else 'output'} of {first.module!r}"
    note = f"features: found by trying to be {place}: on it alone the model's output depends"
    return Head(tuple((tap,) for tap in taps), note)


def _proportional(units: Tensor, logits: Tensor) -> bool:
    norm = float((units * units).sum())
    scale = float((units * logits).sum()) / norm if norm else 0.0
    return scale > 0 and is_close(units * scale, logits)
