"""Finding the last tensor on which a model's output depends, by trying.

Where no layer with a weight matrix of its own returns the logits, the features are found by what
goes in and what comes out: a tensor is a candidate if the output depends on the image through it
alone. Nothing is asked of the code that makes the output of it, which may be a method, a product
with a parameter, a parametrised or quantised layer, or several calls of one layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.reading.layers import Layout, Tap, is_pointwise
from pytest_watermark_guard.models.reading.outputs import as_units, is_units

_RECORDED = 96  # tensors, from the output back: heads are short
_TRIED = 60  # candidates; each costs a forward pass or two of the few images
_CLOSE = 1e-4  # of the largest number: layers of half precision round on the way
_UNMOVED = 1e-2  # of the largest logit, where a softmax follows: a steep one rounds much
_DIAGONAL = 2.0  # times its effect on any other logit: then a unit is the logit of its number


@dataclass(frozen=True)
class _Place:
    """Where a tensor passes: the input or output of all calls of a module, or of one of them."""

    module: str
    of_input: bool
    calls: tuple[int, ...]


@dataclass
class _Candidate:
    """A tensor that may hold the features: one value for each call at its place."""

    place: _Place
    tensors: list[Tensor]


Run = Callable[[Tensor], Tensor]
"""From a batch to the output in question, [B, C]."""


def find_bottleneck(module: nn.Module, example: Tensor, run: Run) -> tuple[Tap, ...]:
    """Return the last tensor before the logits that determines them, and holds other units.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    example : Tensor
        Different images [B, C, H, W], two at least.
    run : callable
        The model on a batch, float [B, C].

    Returns
    -------
    tuple of Tap
        One for each call of a module that makes the logits in parts, side by side. Empty where
        there is none: the output is that of a backbone, or is made of maps.
    """
    logits = run(example)
    if len(example) < 2 or not _differ(logits) or not bool(logits.isfinite().all()):
        return ()
    tried = 0
    for candidate in _candidates(module, example, run):
        if any(_is_image(tensor, example) for tensor in candidate.tensors):
            continue
        for layout in _layouts(candidate.tensors, len(example)):
            tried += 1
            if tried > _TRIED:
                return ()
            if _determines(module, example, run, candidate, layout, logits):
                if taps := _taps(module, example, run, candidate, layout, logits):
                    return taps
                break
    return ()


# --- candidates ---------------------------------------------------------------------------------


def _candidates(module: nn.Module, example: Tensor, run: Run) -> Iterator[_Candidate]:
    """Give the tensors between modules from the last to the first, and groups of calls."""
    passed: deque[tuple[str, bool, int, Tensor]] = deque(maxlen=_RECORDED)
    counts: dict[str, int] = {}
    open_calls: dict[str, list[int]] = {}

    def before(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            index = counts[name] = counts.get(name, -1) + 1
            open_calls.setdefault(name, []).append(index)
            value = first_tensor(args, kwargs)
            if value is not None:
                passed.append((name, True, index, value.detach().clone()))

        return note

    def after(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            index = open_calls[name].pop()
            if isinstance(output, Tensor):
                passed.append((name, False, index, output.detach().clone()))

        return note

    with ExitStack() as stack:
        for name, submodule in module.named_modules():
            if name:
                first = submodule.register_forward_pre_hook(before(name), with_kwargs=True)
                stack.callback(first.remove)
                stack.callback(submodule.register_forward_hook(after(name)).remove)
        run(example)
    seen: list[Tensor] = []
    several: set[tuple[str, bool]] = set()
    for name, of_input, index, tensor in reversed(passed):
        if not tensor.is_floating_point() or tensor.ndim not in (2, 3, 4) or not len(tensor):
            continue
        if not any(_equal(tensor, t) for t in seen):
            seen.append(tensor)
            place = _Place(name, of_input, (index,))
            yield _Candidate(place, [tensor])
            # What goes into one layer may go elsewhere too, and is all replaced where it is made.
            made = (_Place(n, of, (c,)) for n, of, c, t in passed if not of and _equal(tensor, t))
            if (source := next(made, place)) != place:
                yield _Candidate(source, [tensor])
        if counts[name] and (name, of_input) not in several:
            several.add((name, of_input))
            group = [(c, value) for n, of, c, value in passed if (n, of) == (name, of_input)]
            alike = len({value.ndim for _, value in group}) == 1
            if alike and len(group) == counts[name] + 1:  # none lies too far back
                calls = tuple(call for call, _ in group)
                yield _Candidate(_Place(name, of_input, calls), [value for _, value in group])


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return a call's first tensor argument."""
    values = [*args, *kwargs.values()]
    return next((value for value in values if isinstance(value, Tensor)), None)


def _is_image(tensor: Tensor, example: Tensor) -> bool:
    """Tell whether a tensor is the model's input, or an average of it."""
    images = example.float()
    if tensor.numel() == images.numel() and len(tensor) == len(images):
        ordered = tensor.float().flatten(1).sort().values
        return _close(ordered, images.flatten(1).sort().values)
    if tensor.ndim >= 2 and tensor.shape[:2] == images.shape[:2]:
        return _close(as_units(tensor).float(), images.flatten(2).mean(-1))
    return False


def _layouts(tensors: list[Tensor], images: int) -> tuple[Layout, ...]:
    """Return the ways in which rows may belong to images; none where they cannot."""
    if len(tensors) == images and all(len(tensor) == 1 for tensor in tensors):
        return ("calls",)
    if any(len(tensor) != len(tensors[0]) for tensor in tensors) or len(tensors[0]) % images:
        return ()
    return ("",) if len(tensors[0]) == images else ("groups", "neighbours")


# --- trying -------------------------------------------------------------------------------------


@contextmanager
def _replaced(
    module: nn.Module, place: _Place, value: Callable[[Tensor, int], Tensor]
) -> Iterator[None]:
    """Put other values in a tensor's place; they are told the call's position among the calls."""
    count = -1

    def position() -> int | None:
        nonlocal count
        count += 1
        return place.calls.index(count) if count in place.calls else None

    def of_input(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        index = position()
        if index is None:
            return None
        for at, arg in enumerate(args):
            if isinstance(arg, Tensor):
                return (*args[:at], value(arg, index), *args[at + 1 :]), kwargs
        key = next(name for name, arg in kwargs.items() if isinstance(arg, Tensor))
        return args, {**kwargs, key: value(kwargs[key], index)}

    def of_output(_module: nn.Module, _args: Any, output: Any) -> Any:
        index = position()
        return None if index is None else value(output, index)

    submodule = module.get_submodule(place.module)
    if place.of_input:
        handle = submodule.register_forward_pre_hook(of_input, with_kwargs=True)
    else:
        handle = submodule.register_forward_hook(of_output)
    try:
        yield
    finally:
        handle.remove()


def _determines(
    module: nn.Module,
    example: Tensor,
    run: Run,
    candidate: _Candidate,
    layout: Layout,
    logits: Tensor,
) -> bool:
    """Tell whether all images get the first one's output when they get its tensor."""
    images = len(example)

    def of_first_image(tensor: Tensor, _call: int) -> Tensor:
        if layout == "calls":
            return candidate.tensors[0].clone()
        if layout == "neighbours":
            rows = tensor.reshape(images, -1, *tensor.shape[1:])
            return rows[:1].expand_as(rows).reshape(tensor.shape).clone()
        groups = tensor.reshape(-1, images, *tensor.shape[1:])
        return groups[:, :1].expand_as(groups).reshape(tensor.shape).clone()

    with _replaced(module, candidate.place, of_first_image):
        output = run(example)
    return _close(output, logits[:1].expand_as(logits))


def _taps(
    module: nn.Module,
    example: Tensor,
    run: Run,
    candidate: _Candidate,
    layout: Layout,
    logits: Tensor,
) -> tuple[Tap, ...]:
    """Return how a tensor is read as units; nothing if those are the logits themselves."""
    place = candidate.place
    way = _pooling(module, example, run, candidate, logits)
    if way is None:
        return ()
    way = replace(way, layout=layout)
    single = len(place.calls) == 1 or layout == "calls"
    taps = (way,) if single else tuple(replace(way, call=call) for call in place.calls)
    values = [way.read(tensor).float() for tensor in candidate.tensors]
    parts = (
        [torch.cat(values)]
        if layout == "calls"
        else [of_images(rows, len(example), layout) for rows in values]
    )
    units = torch.cat(parts, dim=1)
    if _holds(units, logits):
        return ()
    if single and _is_same(module, example, run, candidate, way, logits, units):
        return ()
    if len(parts) > 1 and all(_are_permuted(part, parts[0]) for part in parts):
        return taps[:1]
    return taps


def _pooling(
    module: nn.Module, example: Tensor, run: Run, candidate: _Candidate, logits: Tensor
) -> Tap | None:
    """Return the way to read a tensor as units that loses nothing of what the output needs."""
    place, tensor = candidate.place, candidate.tensors[0]
    call = place.calls[0] if len(place.calls) == 1 else -1
    tap = Tap(place.module, call, of_input=place.of_input)
    if is_units(tensor):
        return tap
    ways: list[tuple[Tap, Callable[[Tensor], Tensor]]] = [
        (tap, lambda t: t.mean((2, 3), keepdim=True)),
        (replace(tap, channels_last=True), lambda t: t.mean((1, 2), keepdim=True)),
    ]
    if tensor.ndim == 3:
        ways = [
            (replace(tap, token=0), lambda t: t[:, :1]),
            (replace(tap, token=-1), lambda t: t[:, -1:]),
            (tap, lambda t: t.mean(1, keepdim=True)),
        ]
    for way, pooled in ways:
        if _same_output(module, example, run, place, pooled, logits):
            return way
    # Where the last layer with weights works on each place by itself, its answers are pooled.
    last = _last_weighted(module, example, run)
    pointwise = is_pointwise(module.get_submodule(place.module))
    return tap if place.of_input and pointwise and place.module == last else None


def _last_weighted(module: nn.Module, example: Tensor, run: Run) -> str:
    """Return the name of the last layer with parameters that runs."""
    names: list[str] = []
    with ExitStack() as stack:
        for name, submodule in module.named_modules():
            if submodule._parameters and not {*submodule._modules} - {"parametrizations"}:
                hook = partial(lambda name, *_: names.append(name), name)
                stack.callback(submodule.register_forward_hook(hook).remove)
        run(example)
    return names[-1] if names else ""


def _same_output(
    module: nn.Module,
    example: Tensor,
    run: Run,
    place: _Place,
    pooled: Callable[[Tensor], Tensor],
    logits: Tensor,
) -> bool:
    """Tell whether the output stays when every place of a map, or token, is the pooled one."""
    with _replaced(module, place, lambda t, _: pooled(t).expand_as(t).clone()):
        return _close(run(example), logits)


def of_images(rows: Tensor, images: int, layout: Layout) -> Tensor:
    """Average the rows that belong to one image, [k·B, units] -> [B, units]."""
    if layout == "groups":
        return rows.reshape(-1, images, rows.shape[-1]).mean(0)
    if layout == "neighbours":
        return rows.reshape(images, -1, rows.shape[-1]).mean(1)
    return rows


def _are_permuted(one: Tensor, other: Tensor) -> bool:
    """Tell whether two calls of a layer see the same numbers in another order."""
    return _close(one.sort(dim=1).values, other.sort(dim=1).values)


def _holds(units: Tensor, logits: Tensor) -> bool:
    """Tell whether every logit is one of the units already."""
    if units.shape[1] < logits.shape[1]:
        return False
    return all(
        any(_close(units[:, j], logits[:, i]) for j in range(units.shape[1]))
        for i in range(min(logits.shape[1], 3))
    )


def _is_same(
    module: nn.Module,
    example: Tensor,
    run: Run,
    candidate: _Candidate,
    tap: Tap,
    logits: Tensor,
    units: Tensor,
) -> bool:
    """Tell whether units are the logits before an activation, a scale, a norm or a softmax.

    Then a unit moves the logit of its own number most, or all units together may be shifted.
    """
    if units.shape[1] != logits.shape[1] or units.shape[1] < 2:
        return units.shape[1] == logits.shape[1] == 1 and _monotone(units[:, 0], logits[:, 0])
    step = units.std() + _CLOSE * units.abs().max() + torch.finfo(torch.float32).tiny

    def moved(unit: int | None) -> Tensor:
        def shift(tensor: Tensor, _call: int) -> Tensor:
            tokens = tensor.ndim == 3 and not is_units(tensor)
            axis = -1 if tap.channels_last or tokens else 1
            shifted = tensor.clone()
            part = shifted if unit is None else shifted.select(axis, unit)
            part += 0.1 * step.to(part.dtype)
            return shifted

        with _replaced(module, candidate.place, shift):
            return run(example) - logits

    if float(moved(None).abs().max()) <= _UNMOVED * float(logits.abs().max()):
        return True
    for unit in range(min(4, units.shape[1])):
        effect = moved(unit).abs().sum(0)
        others = torch.cat([effect[:unit], effect[unit + 1 :]])
        if effect[unit] < _DIAGONAL * others.max():
            return False
    return True


def _monotone(one: Tensor, other: Tensor) -> bool:
    steps = other[one.argsort()].diff()
    return bool((steps >= 0).all() or (steps <= 0).all())


def _differ(logits: Tensor) -> bool:
    return not _close(logits, logits[:1].expand_as(logits))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    size = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(one.float(), other.float(), rtol=0.0, atol=_CLOSE * size)
