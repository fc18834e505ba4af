"""What a model's layers are called, what they return, and how that is read as units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pytest_watermark_guard.errors import LayerError, did_you_mean
from pytest_watermark_guard.models.reading.opaque import (
    is_in_vmap,
    parts_with_hooks,
    takes_hooks,
)
from pytest_watermark_guard.models.reading.outputs import as_units, describe, looks_channels_last

Layout = Literal["", "groups", "neighbours", "calls"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Tap:
    """One tensor of a forward pass, read as units.

    Attributes
    ----------
    module : str
        Qualified name; the empty name is the model itself.
    call : int
        Which of the module's calls in one forward pass; -1 is the last.
    of_input : bool
        The module's first tensor argument, instead of what it returned.
    token : int or None
        Take this one of a sequence's tokens instead of their mean.
    channels_last : bool
        Maps are [B, H, W, C].
    layout : {"", "groups", "neighbours", "calls"}
        How rows belong to images: one each; k groups of all images; k rows of each image; each
        image is a call of its own.
    """

    module: str
    call: int = -1
    of_input: bool = False
    token: int | None = None
    channels_last: bool = False
    layout: Layout = ""

    def read(self, tensor: Tensor) -> Tensor:
        """Return [B, units] in memory of its own: later layers may work in place."""
        tensor = floating(tensor)
        if self.token is not None and tensor.ndim == 3:
            return tensor[:, self.token].clone()
        return as_units(tensor, channels_last=self.channels_last).clone()


@dataclass
class Trace:
    """What one forward pass called, in order of return, but for what ran inside of torch.vmap.

    Of that, `in_vmap` holds the names of the layers with parameters.
    """

    output: Any = None
    calls: list[Call] = field(default_factory=list)
    in_vmap: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes
    ----------
    tap : Tap
        Its output, for 3-D and 4-D outputs as it was read in `units`.
    output : str
        Description of what was returned, for messages.
    shape : torch.Size or None
        When it was a tensor.
    units : Tensor or None
        float32 [B, units], of layers with a weight matrix only.
    rectified : bool
        The map went through ReLU before it was averaged, as in SqueezeNet.
    input_channels_last : bool
        If the input is a map, it is [B, H, W, C].
    is_network : bool
        It has parts, and takes pictures: what goes in are no features.
    """

    tap: Tap
    output: str
    shape: torch.Size | None
    units: Tensor | None = None
    rectified: bool = False
    input_channels_last: bool = False
    is_network: bool = False

    def input_tap(self) -> Tap:
        """Return the tap of the module's input, read in the same way."""
        return replace(self.tap, of_input=True, channels_last=self.input_channels_last)


def units_of(call: Call) -> Tensor:
    """Return the units of a call that is known to have some."""
    assert call.units is not None
    return call.units


def trace_calls(module: nn.Module, example: Tensor) -> Trace:
    """Run the model once and note the calls of its submodules; hooks do not stay."""
    trace = Trace()
    named = classifier_names(module)
    counts: dict[str, int] = {}

    def observer(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def observe(submodule: nn.Module, args: Any, output: Any) -> None:
            index = counts[name] = counts.get(name, -1) + 1
            if is_in_vmap(output):
                if submodule._parameters:
                    trace.in_vmap.add(name)
                return
            output = floating(output) if isinstance(output, Tensor) else output
            shape = output.shape if isinstance(output, Tensor) else None
            taken = args[0].shape if args and isinstance(args[0], Tensor) else torch.Size()
            pictures = len(taken) == 4 and taken[1] == example.shape[1] and max(taken[2:]) > 1
            call = Call(
                Tap(name, index),
                describe(output),
                shape,
                input_channels_last=_convention(submodule, taken) or False,
                is_network=pictures and bool(submodule._modules),
            )
            if shape is not None and (_has_weight_matrix(submodule) or name in named):
                trace.calls.extend(_readings(call, submodule, output))
            else:
                trace.calls.append(call)

        return observe

    handles = []
    try:
        for name, submodule in parts_with_hooks(module):
            handles.append(submodule.register_forward_hook(observer(name)))
        trace.output = module(example)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def floating(tensor: Tensor) -> Tensor:
    """Return a quantised tensor's values; others as they are."""
    return tensor.dequantize() if tensor.is_quantized else tensor


NO_CLASSIFIER = ("",)


def classifier_owner(module: nn.Module) -> str | None:
    """Return the name of the first module with a method ``get_classifier``, as timm's have."""
    return next(
        (
            name
            for name, owner in module.named_modules()
            if callable(getattr(owner, "get_classifier", None))
        ),
        None,
    )


def classifier_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that timm's ``get_classifier`` returns.

    An Identity there means that the model was built without a head.
    """
    owner = classifier_owner(module)
    if owner is None:
        return ()
    try:
        classifier: Any = module.get_submodule(owner).get_classifier()  # type: ignore[operator]
    except Exception:  # not every model with this method is timm's
        return ()
    several = isinstance(classifier, (tuple, list, nn.ModuleList))
    heads = tuple(classifier) if several else (classifier,)
    if all(head is None or type(head) is nn.Identity for head in heads):
        return NO_CLASSIFIER if not owner else ()
    names = {submodule: name for name, submodule in module.named_modules()}
    return tuple(names[head] for head in heads if head in names)


def _has_weight_matrix(module: nn.Module) -> bool:
    if isinstance(module, _NORMS):
        return False
    if any(p is not None and p.ndim >= 2 for p in module._parameters.values()):
        return True
    if not hasattr(type(module), "weight"):  # of a parametrised or quantised layer it is made
        return False
    quantised = type(module).__module__.startswith("torch.ao.")
    weight = module.weight() if quantised and callable(module.weight) else module.weight
    return isinstance(weight, Tensor) and weight.ndim >= 2


def _readings(call: Call, module: nn.Module, output: Tensor) -> Iterator[Call]:
    """Read an output as units in each way in which a model may turn it into logits."""
    if not output.is_floating_point() or output.ndim not in (2, 3, 4):
        yield call
        return
    tap = replace(call.tap, channels_last=_convention(module, output.shape) or False)
    if output.ndim == 3:
        for token in (-1, 0):
            chosen = replace(tap, token=token)
            yield replace(call, tap=chosen, units=chosen.read(output).float())
    if output.ndim == 4:
        rectified = tap.read(functional.relu(output)).float()
        yield replace(call, tap=tap, units=rectified, rectified=True)
    yield replace(call, tap=tap, units=tap.read(output).float())


def _convention(module: nn.Module, shape: torch.Size) -> bool | None:
    """Tell whether a module's 4-D output is channels-last; None where nothing says so."""
    if isinstance(module, nn.Linear) or type(module) is nn.LayerNorm:
        return True  # they work on the last axis
    if isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
        return False
    return looks_channels_last(shape) if len(shape) == 4 else None


def is_pointwise(module: nn.Module) -> bool:
    """Tell whether a module works on each place of a map by itself: its input is pooled behind."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return all(side == 1 for side in module.kernel_size)
    return isinstance(module, nn.Linear)


def named_layer(module: nn.Module, name: str, trace: Trace) -> tuple[Tap, str | None]:
    """Return the tap of the output of the module called ``name``, and a note where it needs one.

    Raises
    ------
    LayerError
        When there is no such module, it did not run, or it did not return a tensor of units.
    """
    aliases = dict(module.named_modules(remove_duplicate=False))
    if not name or name not in aliases:
        raise unknown_layer(name, [n for n in aliases if n], type(module).__name__)
    if not takes_hooks(aliases[name]):
        raise LayerError(
            f"layer {name!r} is TorchScript, which takes no hooks: choose the module around it, or "
            "put the module that it was made from in its place"
        )
    canonical = {submodule: key for key, submodule in module.named_modules()}[aliases[name]]
    if canonical in trace.in_vmap:
        raise LayerError(
            f"layer {name!r} runs inside of torch.vmap, where it cannot be read: choose a module "
            "around that"
        )
    calls = [call for call in trace.calls if call.tap.module == canonical]
    if not calls:
        raise LayerError(
            f"layer {name!r} did not run in the model's forward pass, so it has no activations: "
            "choose one that runs, or the module that contains it"
        )
    last = calls[-1]
    if last.shape is None:
        raise LayerError(
            f"layer {name!r} returned {last.output}, not a tensor: choose a module inside it"
        )
    if len(last.shape) not in (2, 3, 4):
        raise LayerError(f"layer {name!r} returned {last.output}, which cannot be read as units")
    channels_last, note = map_convention(module, canonical, last.shape, trace)
    runs = len({call.tap.call for call in calls})
    if runs > 1:
        note = f"layer {name!r} runs {runs} times per image; its last output is probed"
    return Tap(canonical, -1, channels_last=channels_last), note


def map_convention(
    module: nn.Module, name: str, shape: torch.Size, trace: Trace
) -> tuple[bool, str | None]:
    """Tell whether a module's 4-D output is channels-last, with a note where that is assumed.

    The module decides, else the shape, else the last layer inside it for which that is known.
    """
    if len(shape) != 4:
        return False, None
    modules = dict(module.named_modules())
    known = _convention(modules[name], shape)
    if known is not None:
        return known, None
    inside = (
        _convention(modules[call.tap.module], torch.Size())
        for call in reversed(trace.calls)
        if call.tap.module.startswith(f"{name}." if name else "")
    )
    guess = next((answer for answer in inside if answer is not None), False)
    axes = "[B, H, W, C]" if guess else "[B, C, H, W]"
    return guess, f"layer {name or 'output'!r}: its map {[*shape]} is assumed to be {axes}"


def unknown_layer(
    name: str,
    known: Sequence[str],
    model: str,
    names: str = "the names in dict(model.named_modules())",
) -> LayerError:
    """Return the error for a name that no module has; `names` says which there are."""
    hint = did_you_mean(name, ("logits", "features", *known), most=3).removeprefix("; ")
    return LayerError(
        f"{model} has no layer {name!r}: {hint and f'{hint} '}"
        f'"logits", "features" and {names} are understood'
    )
