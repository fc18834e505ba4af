"""One probe's images, shared out among the workers of an engine."""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_watermark_guard.engines import Engine
from pytest_watermark_guard.errors import EngineError
from pytest_watermark_guard.progress import progress_bar

if TYPE_CHECKING:
    from pytest_watermark_guard.batches import ProbingBatches
    from pytest_watermark_guard.probing import _Ready
    from pytest_watermark_guard.running import HowToRun, Piece, Share

_EACH = 2  # shares for each worker: who is faster, or takes over from one that is lost, does more

Machine = tuple[str, ...]


@dataclass(frozen=True)
class SharedOut:
    """Computes a probe's activations by an engine: see `running.Compute`.

    Parameters
    ----------
    engine : Engine
    prepare : callable
        Gives a worker what this process has; it is sent there.
    """

    engine: Engine
    prepare: Callable[[], _Ready]

    def __call__(
        self, module: nn.Module, batches: ProbingBatches, how: HowToRun, share: Share
    ) -> Generator[Piece, None, None]:
        """Give the activations piece by piece, the same pieces as without an engine.

        Raises
        ------
        EngineError
            If something cannot be sent, a worker was lost too often, or computes by other means
            than this process, so that the last bits would differ.
        """
        shares = _cut(share, batches.batch_size, _EACH * self.engine.workers)
        # A gate may be decided any moment: what is begun by then is done in vain.
        ahead = self.engine.workers + 1 if share.expected < 1 else None
        order = self.prepare, batches.baseline.identities, machine(batches.device)
        with ExitStack() as stack:
            advance = stack.enter_context(progress_bar(len(batches.baseline), how.progress))
            advance(share.first)
            results = self.engine.map(_work, order, shares, ahead)
            for result in stack.enter_context(closing(results)):
                if isinstance(result, EngineError):
                    raise result
                for piece in result:
                    yield piece
                    advance(len(piece.identities))


def machine(device: torch.device) -> Machine:
    """Return what the last bits depend on, beside the number of threads."""
    cuda = device.type == "cuda"
    return (
        platform.machine(),
        torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
        f"torch {torch.__version__}",
    )


def _cut(share: Share, batch_size: int, parts: int) -> list[Share]:
    """Cut where batches end, so that every forward pass gets the input that it would have got."""
    images = share.expected * (share.last - share.first)
    step = batch_size * max(1, round(images / parts / batch_size))
    return [
        replace(share, first=first, last=min(first + step, share.last))
        for first in range(share.first, share.last, step)
    ]


def _work(
    order: tuple[Callable[[], _Ready], tuple[str, ...], Machine], share: Share
) -> list[Piece]:
    from pytest_watermark_guard.running import compute

    prepare, identities, wanted = order
    ready = prepare()
    if ready.batches.baseline.identities != identities:
        raise EngineError("a worker finds other images than the process that shares them out")
    found = machine(ready.batches.device)
    if found != wanted:
        raise EngineError(
            "the images of one probe are shared out among like machines only: this process "
            f"computes by {', '.join(wanted)}, a worker by {', '.join(found)}. Start the probe on "
            "a machine like the workers, or survey: there a model stays with one worker"
        )
    return list(compute(ready.module, ready.batches, ready.how, share))
