"""One probe's images, shared out among the workers of an engine."""

from __future__ import annotations

import platform
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import torch
from torch import nn

from pytest_watermark_guard.errors import EngineError
from pytest_watermark_guard.images.batches import ProbingBatches
from pytest_watermark_guard.models.device import device_name
from pytest_watermark_guard.probing.engines.engine import Engine
from pytest_watermark_guard.probing.engines.opening import open_engine
from pytest_watermark_guard.probing.prepare import ProbeRequest, prepare
from pytest_watermark_guard.probing.progress import progress_bar
from pytest_watermark_guard.probing.running import (
    ActivationChunk,
    ExecutionConfig,
    ImageShard,
    compute,
)

_EACH = 2  # shares for each worker: who is faster, or takes over from one that is lost, does more

Machine = tuple[str, ...]


@dataclass(frozen=True)
class SharedOut:
    """Computes a probe's activations by an engine: see `running.Compute`.

    Parameters
    ----------
    engine : Engine
    request : ProbeRequest
        What a worker makes ready for itself; it is sent there.
    """

    engine: Engine
    request: ProbeRequest

    def __call__(
        self,
        module: nn.Module,
        batches: ProbingBatches,
        execution: ExecutionConfig,
        shard: ImageShard,
    ) -> Generator[ActivationChunk, None, None]:
        """Give the activations piece by piece, the same pieces as without an engine.

        Raises
        ------
        EngineError
            If something cannot be sent, a worker was lost too often, or computes by other means
            than this process, so that the last bits would differ.
        """
        shards = _cut(shard, batches.batch_size, _EACH * self.engine.workers)
        # A gate may be decided any moment: what is begun by then is done in vain.
        ahead = self.engine.workers + 1 if shard.expected < 1 else None
        order = self.request, batches.baseline.identities, machine(batches.device)
        with ExitStack() as stack:
            advance = stack.enter_context(progress_bar(len(batches.baseline), execution.progress))
            advance(shard.first)
            results = self.engine.map(_work, order, shards, ahead)
            for result in stack.enter_context(closing(results)):
                if isinstance(result, EngineError):
                    raise result
                for piece in result:
                    yield piece
                    advance(len(piece.identities))


def shared_out(request: ProbeRequest) -> SharedOut:
    """Open the engine that a request names; its workers are asked for the same.

    Raises
    ------
    EngineError
        As `open_engine`.
    """
    settings = request.settings
    assert settings.engine is not None
    # Workers do not know this run's scenarios by name.
    scenarios = request.scenarios or settings.scenarios
    there = replace(settings, engine=None, cache=False, scenarios=scenarios)
    return SharedOut(
        open_engine(settings.engine, settings.device),
        replace(request, settings=there, class_names=None, progress=False),
    )


def machine(device: torch.device) -> Machine:
    """Return what the last bits depend on, beside the number of threads."""
    return platform.machine(), device_name(device), f"torch {torch.__version__}"


def _cut(shard: ImageShard, batch_size: int, parts: int) -> list[ImageShard]:
    """Cut where batches end, so that every forward pass gets the input that it would have got."""
    images = shard.expected * (shard.last - shard.first)
    step = batch_size * max(1, round(images / parts / batch_size))
    return [
        replace(shard, first=first, last=min(first + step, shard.last))
        for first in range(shard.first, shard.last, step)
    ]


def _work(
    order: tuple[ProbeRequest, tuple[str, ...], Machine], shard: ImageShard
) -> list[ActivationChunk]:
    request, identities, wanted = order
    context = prepare(request)
    if context.batches.baseline.identities != identities:
        raise EngineError(
            "a worker found other images than this process: all machines must see the same "
            "files under the same path"
        )
    found = machine(context.batches.device)
    if found != wanted:
        raise EngineError(
            "the images of one probe are shared out among like machines only: this process "
            f"computes by {', '.join(wanted)}, a worker by {', '.join(found)}. Start the probe on "
            "a machine like the workers, or survey: there a model stays with one worker"
        )
    return list(compute(context.module, context.batches, context.execution, shard))
