"""Ways in which models make one answer of those of several networks, heads or views."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
