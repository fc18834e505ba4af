"""Finding the last tensor on which a model's output depends, by trying.

Where no layer with a weight matrix of its own returns the logits, the features are found by what
goes in and what comes out: a tensor is a candidate if the output depends on the image through it
alone. Nothing is asked of the code that makes the output of it, which may be a method, a product
with a parameter, a parametrised or quantised layer, or several calls of one layer. Where candidates
come from is another matter: see `passed` and
`onnx_file`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pytest_watermark_guard.models.reading.combining import are_alike, make_up
from pytest_watermark_guard.models.reading.layers import Layout, Tap
from pytest_watermark_guard.models.reading.outputs import as_units, is_units

_TRIED = 60  # candidates; each costs a forward pass or two of the few images
_CLOSE = 1e-4  # of the largest number: layers of half precision round on the way
_ENLARGED = 16.0  # times a candidate's numbers
_UNMOVED = 1e-2  # of the largest logit, where a softmax follows: a steep one rounds much
_DIAGONAL = 2.0  # times its effect on any other logit: then a unit is the logit of its number

Run = Callable[[Tensor], Tensor]
"""From a batch to the output in question, [B, C]."""

Change = Callable[[Tensor, int], Tensor]
"""From a candidate's tensor, and its position among the calls, to what takes its place."""


@dataclass
class Candidate:
    """A tensor that may hold the features: one value for each call at its place.

    Attributes
    ----------
    tap : Tap
        Its place; how it is read as units is found out here.
    calls : tuple of int
        The calls of `tap` that `tensors` come from.
    tensors : list of Tensor
        Of the example.
    rerun : callable
        The output for the example with other values in the candidate's place.
    pooled_behind : callable
        Whether the last layer with weights takes this tensor, and works on each place by itself:
        its answers are pooled.
    """

    tap: Tap
    calls: tuple[int, ...]
    tensors: list[Tensor]
    rerun: Callable[[Change], Tensor]
    pooled_behind: Callable[[], bool]


def find_bottleneck(
    candidates: Iterable[Candidate], example: Tensor, logits: Tensor
) -> tuple[Tap, ...]:
    """Return the last tensor before the logits that determines them, and holds other units.

    Parameters
    ----------
    candidates : iterable of Candidate
        From the output back.
    example : Tensor
        Different images [B, C, H, W], two at least.
    logits : Tensor
        The model's output for them, float [B, C].

    Returns
    -------
    tuple of Tap
        One for each call of a module that makes the logits in parts, side by side. Empty where
        there is none: the output is that of a backbone, or is made of maps.
    """
    if len(example) < 2 or are_alike(logits) or not bool(logits.isfinite().all()):
        return ()
    tried = 0
    for candidate in candidates:
        if any(_is_image(tensor, example) for tensor in candidate.tensors):
            continue
        for layout in _layouts(candidate.tensors, len(example)):
            tried += 1
            if tried > _TRIED:
                return ()
            if _determines(candidate, len(example), layout, logits):
                if taps := _taps(candidate, len(example), layout, logits):
                    return taps
                break
    return ()


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


def _determines(candidate: Candidate, images: int, layout: Layout, logits: Tensor) -> bool:
    """Tell whether all images get the first one's output when they get its tensor."""

    def of_first_image(tensor: Tensor, _call: int) -> Tensor:
        if layout == "calls":
            return candidate.tensors[0].clone()
        if layout == "neighbours":
            rows = tensor.reshape(images, -1, *tensor.shape[1:])
            return rows[:1].expand_as(rows).reshape(tensor.shape).clone()
        groups = tensor.reshape(-1, images, *tensor.shape[1:])
        return groups[:, :1].expand_as(groups).reshape(tensor.shape).clone()

    return _close(candidate.rerun(of_first_image), logits[:1].expand_as(logits))


def _taps(candidate: Candidate, images: int, layout: Layout, logits: Tensor) -> tuple[Tap, ...]:
    """Return how a tensor is read as units; nothing if those are the logits themselves."""
    way = _pooling(candidate, logits)
    if way is None:
        return ()
    way = replace(way, layout=layout)
    single = len(candidate.calls) == 1 or layout == "calls"
    taps = (way,) if single else tuple(replace(way, call=call) for call in candidate.calls)
    values = [way.read(tensor).float() for tensor in candidate.tensors]
    parts = (
        [torch.cat(values)]
        if layout == "calls"
        else [of_images(rows, images, layout) for rows in values]
    )
    units = torch.cat(parts, dim=1)
    if _holds(units, logits):
        return ()
    if len(parts) > 1 and parts[0].shape == logits.shape and make_up(parts, logits):
        return ()  # the logits of several views
    if single and _is_same(candidate, way, logits, units):
        return ()
    if len(parts) > 1 and all(_are_permuted(part, parts[0]) for part in parts):
        return taps[:1]
    return taps


def _pooling(candidate: Candidate, logits: Tensor) -> Tap | None:
    """Return the way to read a tensor as units that loses nothing of what the output needs."""
    tap, tensor = candidate.tap, candidate.tensors[0]
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
        if _same_output(candidate, pooled, logits):
            return way
    return tap if candidate.pooled_behind() else None


def _same_output(candidate: Candidate, pooled: Callable[[Tensor], Tensor], logits: Tensor) -> bool:
    """Tell whether the output stays when every place of a map, or token, is the pooled one.

    Also for larger numbers: activations bend small ones too little to be noticed.
    """

    def with_pooled(factor: float) -> Tensor:
        return candidate.rerun(lambda t, _: (pooled(t) * factor).expand_as(t).clone())

    return _close(with_pooled(1), logits) and _close(
        with_pooled(_ENLARGED), candidate.rerun(lambda t, _: t * _ENLARGED)
    )


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


def _is_same(candidate: Candidate, tap: Tap, logits: Tensor, units: Tensor) -> bool:
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

        return candidate.rerun(shift) - logits

    if float(moved(None).abs().max()) <= _UNMOVED * float(logits.abs().max()):
        return True
    for unit in range(min(4, units.shape[1])):
        effect = moved(unit).abs().sum(0)
        others = torch.cat([effect[:unit], effect[unit + 1 :]])
        if effect[unit] < _DIAGONAL * others.max():
            return False
    return True


def _monotone(one: Tensor, other: Tensor) -> bool:
    order = one.argsort()
    steps = other[order].diff()
    return bool((steps >= 0).all() or (steps <= 0).all())


def are_shares(logits: Tensor) -> bool:
    """Tell whether outputs are those of a softmax: steep ones all look alike but in logarithms."""
    total = logits.sum(-1)
    shares = bool((logits >= 0).all()) and logits.shape[-1] > 1
    return shares and torch.allclose(total, torch.ones_like(total), atol=1e-3)


def logarithms(shares: Tensor) -> Tensor:
    """Return float logarithms, finite ones also of 0."""
    return shares.float().clamp_min(torch.finfo(torch.float32).tiny).log()


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    size = float(other.abs().max()) if other.numel() else 0.0
    return torch.allclose(one.float(), other.float(), rtol=0.0, atol=_CLOSE * size)
