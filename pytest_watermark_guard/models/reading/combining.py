"""Ways in which models make one answer of those of several networks, heads or views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pytest_watermark_guard.models.reading.outputs import is_close

PROBABILITIES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda logits: logits.softmax(-1),
    lambda logits: logits.log_softmax(-1),
    torch.sigmoid,
)
RECTIFIERS: tuple[Callable[[Tensor], Tensor], ...] = (
    functional.relu,
    functional.relu6,
    functional.gelu,
    functional.silu,
    functional.hardswish,
)
_LISTED = 4  # layers in a note


def make_up(parts: Sequence[Tensor], logits: Tensor, eps: float = 0.0) -> bool:
    """Tell whether logits are a mean or sum of parts, or of probabilities made of them.

    Parameters
    ----------
    parts : sequence of Tensor
        Float, each of the logits' shape.
    logits : Tensor
        Float [B, C].
    eps : float
        Of the precision in which they were combined.
    """
    together = torch.stack([*parts])
    averages = [together.mean(0), together.sum(0)]
    averages += [act(average) for act in PROBABILITIES for average in averages[:2]]
    averages += [act(together).mean(0) for act in PROBABILITIES]
    averages += [together.softmax(-1).mean(0).log()]
    return any(is_close(average, logits, 2 * eps) for average in averages)


def are_activated(parts: Sequence[Tensor], output: Tensor) -> bool:
    """Tell whether an output is a mean or sum of parts behind an activation."""
    total = torch.stack([*parts]).sum(0)
    return any(
        is_close(act(units), output) for act in RECTIFIERS for units in (total, total / len(parts))
    )


def are_alike(output: Tensor) -> bool:
    """Tell whether all images get the same."""
    return is_close(output[:1].expand_as(output), output)


def note_on_parts(parts: Iterable[tuple[str, int, int]]) -> str:
    """Say which units come from which layer: its name, how often it is called, and its units."""
    parts = [*parts]
    named, end = [], 0
    for layer, calls, units in parts:
        start, end = end, end + units
        which = f"units {start} to {end - 1}" if len(parts) > 1 else ""
        averaged = f"the mean of its {calls} calls" if calls > 1 else ""
        told = ", ".join(filter(None, (which, averaged)))
        named.append(f"{layer!r}" + (f" ({told})" if told else ""))
    if len(named) > _LISTED:
        named[_LISTED - 1 :] = [f"{len(named) - _LISTED + 1} more layers"]
    *first, last = named
    listed = f"{', '.join(first)} and {last}, side by side" if first else last
    return (
        f"features: what goes into {listed}; only together do the last layers of this model "
        "determine its output"
    )
