"""Finding layers that make the logits together, such as the last ones of an ensemble's networks.

They are found by trying: where such layers return the first image's numbers for every image, the
model's output is the first image's too, whatever is done with them behind: a mean, weights, the
mean of probabilities, a median. None of them may work on what another one made, as the blocks of a
residual network do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.reading.bottleneck import Run
from pytest_watermark_guard.models.reading.combining import are_activated, are_alike, make_up
from pytest_watermark_guard.models.reading.layers import Call, Tap, is_pointwise, units_of
from pytest_watermark_guard.models.reading.outputs import is_close
from pytest_watermark_guard.models.reading.passed import first_tensor
from pytest_watermark_guard.models.state import same_random_state

_FACTORS = (16.0, 0.0)  # of a layer's numbers; a softmax of great ones does not change with them
_TRIED = 24  # layers; each costs a forward pass of the few images

Layers = dict[str, list[Call]]
"""The calls of each layer, in the order in which they ran."""


def repeated_head(
    module: nn.Module, candidates: Sequence[Call], logits: Tensor, eps: float
) -> list[Call] | None:
    """Return the calls of the last layer if they are averaged or added, as those of mirrored views.

    Parameters
    ----------
    module : torch.nn.Module
    candidates : sequence of Call
        Whose units are of the logits' shape, from the output back.
    logits : Tensor
        Float [B, C].
    eps : float
        Of the output's precision.
    """
    calls = next(iter(_layers(module, candidates).values()), [])
    return calls if len(calls) > 1 and _make_up_logits(calls, candidates, logits, eps) else None


def joint_heads(
    module: nn.Module, example: Tensor, candidates: Sequence[Call], logits: Tensor, run: Run
) -> Layers:
    """Return the layers that only together determine the output; empty where there are none.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    example : Tensor
        The batch that was traced.
    candidates : sequence of Call
        Whose units are of the logits' shape, from the output back.
    logits : Tensor
        The model's output for the example, float [B, C].
    run : callable
        Gives that output for a batch.
    """
    layers = _worth_trying(_layers(module, candidates), candidates, logits)
    if sum(map(len, layers.values())) < 2:
        return {}
    found = _parts(module, example, layers, logits, run)
    calls = [call for layer in reversed(found.values()) for call in layer]
    if len(calls) < 2 or not determine(module, example, found, run):
        return {}
    # Where all images get one output, that they do says nothing.
    if are_alike(logits) and not _make_up_logits(calls, candidates, logits):
        return {}
    if are_activated([units_of(call) for call in calls], logits):
        return {}
    return dict(reversed(found.items()))


def _worth_trying(layers: Layers, candidates: Sequence[Call], logits: Tensor) -> Layers:
    """Return the last layers that make up the logits, or those that make vectors.

    Maps are those of a backbone's last branches more often than those of several heads.
    """
    last: Layers = {}
    calls: list[Call] = []
    for name, more in layers.items():
        last[name] = more
        calls += more
        if len(calls) > 1 and _make_up_logits(calls, candidates, logits):
            return last
    vectors = {name: calls for name, calls in layers.items() if all(map(is_vector, calls))}
    return dict(itertools.islice(vectors.items(), _TRIED))


def inputs_of(module: nn.Module, example: Tensor, layers: Layers, run: Run) -> dict[Tap, Tensor]:
    """Return what went into each call of some layers."""
    inputs: dict[Tap, Tensor] = {}

    def hook_for(calls: Sequence[Call]) -> Callable[[nn.Module, Any, Any], None]:
        counted = itertools.count()
        taps = {call.tap.call: call.input_tap() for call in calls}

        def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
            tap = taps.get(next(counted))
            value = first_tensor(args, kwargs)
            if tap is not None and value is not None:
                inputs[tap] = value.clone()

        return keep

    with ExitStack() as stack:
        for name, calls in layers.items():
            submodule = module.get_submodule(name)
            handle = submodule.register_forward_pre_hook(hook_for(calls), with_kwargs=True)
            stack.callback(handle.remove)
        run(example)
    return inputs


def _layers(module: nn.Module, candidates: Iterable[Call]) -> Layers:
    """Collect the calls of layers that make vectors, or maps of which each place is made alone."""
    layers: Layers = {}
    for call in candidates:
        name = call.tap.module
        pointwise = is_vector(call) or is_pointwise(module.get_submodule(name))
        if pointwise and not call.rectified and call.tap.token is None:
            layers[name] = [call, *layers.get(name, ())]
    return layers


def is_vector(call: Call) -> bool:
    """Tell whether a layer returned [B, C], or a map of one place."""
    return call.shape is not None and call.shape[2:].numel() == 1


def _make_up_logits(
    calls: Sequence[Call], candidates: Sequence[Call], logits: Tensor, eps: float = 0.0
) -> bool:
    """Tell whether the logits are a mean or sum of outputs, or of probabilities made of them."""
    rectified = {call.tap: units_of(call) for call in candidates if call.rectified}
    plain = [units_of(call) for call in calls]
    maps = [rectified.get(call.tap, units_of(call)) for call in calls]
    return make_up(plain, logits, eps) or make_up(maps, logits, eps)


def _parts(module: nn.Module, example: Tensor, layers: Layers, logits: Tensor, run: Run) -> Layers:
    """Return the layers on which the output depends and none of which feeds another; last first."""
    found: Layers = {}
    plain, unchanged = _rerun(module, example, run, layers)
    for name, calls in layers.items():
        layer = {name: calls}
        for factor in _FACTORS:
            change = partial(torch.mul, other=factor)
            made, output = _rerun(module, example, run, found | layer, layer, change)
            if not all(is_close(units, plain[tap]) for tap, units in made.items()):
                break
            if not is_close(output, unchanged):
                found |= layer
                break
    return found


def determine(module: nn.Module, example: Tensor, layers: Layers, run: Run) -> bool:
    """Tell whether all images get one output when some layers return the first one's numbers."""

    def first(made: Tensor) -> Tensor:
        return made[:1].expand_as(made).clone()

    return are_alike(_rerun(module, example, run, {}, layers, first)[1])


def _rerun(
    module: nn.Module,
    example: Tensor,
    run: Run,
    watched: Layers,
    changed: Layers | None = None,
    change: Callable[[Tensor], Tensor] | None = None,
) -> tuple[dict[Tap, Tensor], Tensor]:
    """Run a model some of whose layers return other numbers.

    What it draws at random is the same each time.

    Returns
    -------
    dict of Tap to Tensor
        What the watched layers made, [B, units], before it was changed.
    Tensor
        The model's output.
    """
    made: dict[Tap, Tensor] = {}
    changed = changed or {}
    with ExitStack() as stack, same_random_state():
        for name, calls in (changed | watched).items():
            hook = _hook(calls, made, change if name in changed else None)
            handle = module.get_submodule(name).register_forward_hook(hook)
            stack.callback(handle.remove)
        output = run(example)
    return {tap: units for tap, units in made.items() if tap.module in watched}, output


def _hook(
    calls: Sequence[Call], made: dict[Tap, Tensor], change: Callable[[Tensor], Tensor] | None
) -> Callable[[nn.Module, Any, Any], Tensor | None]:
    """Return a hook that keeps what a layer makes, and changes it."""
    counted = itertools.count()
    taps = {call.tap.call: call.tap for call in calls}

    def hook(_module: nn.Module, _args: Any, output: Any) -> Tensor | None:
        tap = taps.get(next(counted))
        if tap is None:
            return None
        made[tap] = tap.read(output).float()
        if change is None:
            return None
        if not output.is_quantized:
            return change(output)
        # What comes behind works on quantised tensors only.
        return torch.quantize_per_tensor(
            change(output.dequantize()), output.q_scale(), output.q_zero_point(), output.dtype
        )

    return hook
