"""Tensors that pass between a module's submodules, as candidates for its features."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.reading.bottleneck import Candidate, Change, Run
from pytest_watermark_guard.models.reading.layers import Tap, is_pointwise
from pytest_watermark_guard.models.reading.opaque import is_in_vmap, parts_with_hooks

_RECORDED = 96  # tensors, from the output back: heads are short


@dataclass(frozen=True)
class _Place:
    """Where a tensor passes: the input or output of all calls of a module, or of one of them."""

    module: str
    of_input: bool
    calls: tuple[int, ...]


def passed_tensors(module: nn.Module, example: Tensor, run: Run) -> Iterator[Candidate]:
    """Give the tensors between modules from the last to the first, and groups of calls.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    example : Tensor
    run : callable
        The model on a batch.
    """

    def candidate(place: _Place, tensors: list[Tensor], *others: _Place) -> Candidate:
        def rerun(change: Change) -> Tensor:
            if others:
                # Not of what comes in: around this place it may be changed already.
                value = change(tensors[0], 0)
                change = lambda *_: value  # noqa: E731
            with ExitStack() as stack:
                for changed in (place, *others):
                    stack.enter_context(_replaced(module, changed, change))
                return run(example)

        def pooled_behind() -> bool:
            alone = place.of_input and not others
            pointwise = alone and is_pointwise(module.get_submodule(place.module))
            return pointwise and place.module == _last_weighted(module, example, run)

        call = place.calls[0] if len(place.calls) == 1 else -1
        tap = Tap(place.module, call, of_input=place.of_input)
        return Candidate(tap, place.calls, tensors, rerun, pooled_behind)

    passed: deque[tuple[str, bool, int, Tensor]] = deque(maxlen=_RECORDED)
    counts: dict[str, int] = {}
    open_calls: dict[str, list[int]] = {}

    def before(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            index = counts[name] = counts.get(name, -1) + 1
            open_calls.setdefault(name, []).append(index)
            value = first_tensor(args, kwargs)
            if value is not None and not is_in_vmap(value):
                passed.append((name, True, index, value.detach().clone()))

        return note

    def after(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            index = open_calls[name].pop()
            if isinstance(output, Tensor) and not is_in_vmap(output):
                passed.append((name, False, index, output.detach().clone()))

        return note

    with ExitStack() as stack:
        for name, submodule in parts_with_hooks(module):
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
        if not any(are_same(tensor, t) for t in seen):
            seen.append(tensor)
            place = _Place(name, of_input, (index,))
            yield candidate(place, [tensor])
            # What goes into one layer may go elsewhere too: it is replaced where it is made, or
            # wherever it goes in if no module makes it.
            at = [_Place(n, of, (c,)) for n, of, c, t in passed if are_same(tensor, t)]
            if not at[0].of_input and at[0] != place:
                yield candidate(at[0], [tensor])
            elif others := [other for other in at if other.of_input and other != place]:
                yield candidate(place, [tensor], *others)
        if counts[name] and (name, of_input) not in several:
            several.add((name, of_input))
            group = [(c, value) for n, of, c, value in passed if (n, of) == (name, of_input)]
            alike = len({value.ndim for _, value in group}) == 1
            if alike and len(group) == counts[name] + 1:  # none lies too far back
                calls = tuple(call for call, _ in group)
                yield candidate(_Place(name, of_input, calls), [value for _, value in group])


def are_same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors hold the same numbers in the same shape."""
    return one.shape == other.shape and torch.equal(one, other)


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return a call's first tensor argument."""
    values = [*args, *kwargs.values()]
    return next((value for value in values if isinstance(value, Tensor)), None)


@contextmanager
def _replaced(module: nn.Module, place: _Place, value: Change) -> Iterator[None]:
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


def _last_weighted(module: nn.Module, example: Tensor, run: Run) -> str:
    """Return the name of the last layer with parameters that runs."""
    names: list[str] = []
    with ExitStack() as stack:
        for name, submodule in parts_with_hooks(module):
            if submodule._parameters and not {*submodule._modules} - {"parametrizations"}:
                hook = partial(lambda name, *_: names.append(name), name)
                stack.callback(submodule.register_forward_hook(hook).remove)
        run(example)
    return names[-1] if names else ""
