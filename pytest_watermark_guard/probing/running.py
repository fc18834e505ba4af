"""A model over some of a probe's images, in this process."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from pytest_watermark_guard.images.batches import ProbingBatches
from pytest_watermark_guard.images.inputs import model_inputs
from pytest_watermark_guard.images.looks import Looks
from pytest_watermark_guard.models.device import computing_in
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.reading.foreign import explained, out_of_memory
from pytest_watermark_guard.models.running.execution import Executor
from pytest_watermark_guard.models.running.memory import kept_memory
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.models.state import preserved
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.caches.plans import PlanCache
from pytest_watermark_guard.probing.progress import progress_bar

# Two probes of one model would switch its mode under each other's feet.
ONE_AT_A_TIME = threading.RLock()


@dataclass(frozen=True)
class ExecutionConfig:
    """How to run a model, beside with which images.

    Attributes
    ----------
    layers : tuple of str
        As asked for.
    outputs : str
        What the model returns: "auto", "logits" or "features".
    plan : Plan
        To begin with.
    tuning : bool
        Whether to look for a faster plan that gives the same activations.
    sizes : bool
        Whether its batch size may differ.
    progress : bool
        Whether to show a progress bar.
    """

    layers: tuple[str, ...]
    outputs: str
    plan: Plan
    tuning: bool
    sizes: bool
    progress: bool


@dataclass(frozen=True)
class ImageShard:
    """Some of a probe's images, in some of its streams.

    Attributes
    ----------
    first, last : int
        From image number `first` up to, without, `last`.
    streams : tuple of str
        Other than all of them: what goes with what is known must be float32, as that is.
    expected : float
        How many of the images can be expected to be asked for, in [0, 1].
    """

    first: int
    last: int
    streams: tuple[str, ...]
    expected: float = 1.0


class ActivationChunk(NamedTuple):
    """What a model answers to a few images, how it was run, and what it told about itself."""

    activations: dict[tuple[str, str], Array]
    identities: tuple[str, ...]
    labels: tuple[int | None, ...]
    looks: Looks
    plan: Plan
    notes: tuple[str, ...]
    weights: str


class Compute(Protocol):
    """Runs a model on a share of a probe's images, in order, here or elsewhere."""

    def __call__(
        self,
        module: nn.Module,
        batches: ProbingBatches,
        execution: ExecutionConfig,
        shard: ImageShard,
    ) -> Generator[ActivationChunk, None, None]:
        """Give the activations piece by piece."""


def compute(
    module: nn.Module,
    batches: ProbingBatches,
    execution: ExecutionConfig,
    shard: ImageShard,
    plans: PlanCache | None = None,
) -> Generator[ActivationChunk, None, None]:
    """Run a model in this process; see `Compute`. The fastest plan is kept in `plans`."""
    images = len(batches.baseline)
    todo = shard.streams
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(preserved(module))
        if batches.device.type == "cpu":
            stack.enter_context(kept_memory())
        # Layers are told apart by comparing numbers: in full precision.
        example = batches.example()
        with (
            computing_in("float32", batches.device),
            explained(module, example, "finding its layers"),
        ):
            recorder = _recorder(module, execution, example)
        stack.enter_context(recorder)
        weights = recorder.weights()
        executor = stack.enter_context(
            Executor(
                recorder,
                execution.plan,
                int(shard.expected * (shard.last - shard.first) * len(todo)),
                tuning=execution.tuning,
                # What is cached was float32: see `filling.fill`.
                only_float32=len(todo) < len(batches.streams),
                sizes=execution.sizes,
                remembered=None if plans is None else plans.load(),
            )
        )
        if plans is not None:
            # Also when the gate closes the generator early.
            stack.callback(lambda: plans.save(executor.plan) if executor.tuned else None)
        advance = stack.enter_context(progress_bar(images, execution.progress))
        advance(shard.first)
        if batches.decoded is not None and (shard.first, shard.last) == (0, images):
            stack.enter_context(batches.decoded.collecting())
        part = batches.part(shard.first, shard.last, todo)
        inputs = model_inputs(part, todo, lambda: executor.plan.memory_format)
        for batch in stack.enter_context(closing(inputs)):
            first, last = batch.identities[0], batch.identities[-1]
            with explained(module, batch.values, f"probing images {first!r} to {last!r}"):
                found = executor(batch.values)
            activations = {
                (stream, layer): rows
                for layer, units in found.items()
                for stream, rows in zip(todo, np.split(units, len(todo)), strict=True)
            }
            yield ActivationChunk(
                activations,
                batch.identities,
                batch.labels,
                batch.looks,
                plan=executor.plan,
                notes=recorder.notes,
                weights=weights,
            )
            advance(len(batch.identities))


def _recorder(
    module: nn.Module, execution: ExecutionConfig, example: torch.Tensor
) -> ActivationRecorder:
    """Find the layers, on fewer images where there is no memory for all of the example."""
    try:
        return ActivationRecorder(module, execution.layers, example, execution.outputs)
    except Exception as error:
        if not out_of_memory(error) or len(example) <= 2:
            raise
    return ActivationRecorder(module, execution.layers, example[:2], execution.outputs)
