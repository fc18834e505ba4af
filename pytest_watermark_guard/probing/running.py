"""A model over some of a probe's images, in this process."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
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
from pytest_watermark_guard.models.running.compared import KnownAnswers
from pytest_watermark_guard.models.running.execution import Executor
from pytest_watermark_guard.models.running.openvino_model import Converter
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.models.running.threads import free_threads, using_threads
from pytest_watermark_guard.models.state import preserved
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.caches.plans import PlanCache
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.progress import progress_bar

_WORTH_SAYING = 20.0  # seconds
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
    threads : int
        On a CPU, how many may be used; where others keep it busy, fewer are.
    progress : bool
        Whether to show a progress bar.
    lower_precision : bool, default True
        Whether a faster plan may compute in less than float32.
    """

    layers: tuple[str, ...]
    outputs: str
    plan: Plan
    tuning: bool
    sizes: bool
    threads: int
    progress: bool
    lower_precision: bool = True


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
    """What a model answers to a few images, how it was run, and what it told about itself.

    `how` it was run is the plan in words, with what it came to on this machine; `seconds` is what
    an input took.
    """

    activations: dict[tuple[str, str], Array]
    identities: tuple[str, ...]
    labels: tuple[int | None, ...]
    looks: Looks
    plan: Plan
    how: str
    seconds: float
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
) -> Generator[ActivationChunk, None, None]:
    """Run a model in this process; see `Compute`."""
    with OpenModel() as model:
        yield from model(module, batches, execution, shard)


@dataclass
class FoundLayers:
    """What was found out about one model, for whoever opens it next.

    Attributes
    ----------
    recorder : ActivationRecorder or None
    converter : Converter or None
        Of the recorder.
    weights : str
    example : Tensor or None
        The inputs [n, ...] by which they were found.
    answers : dict of (stream, layer) to ndarray, shape [k, units]
        Of the first k images, by the plan that it begins with.
    seconds : float
        That an input of those took.
    """

    recorder: ActivationRecorder | None = None
    converter: Converter | None = None
    weights: str = ""
    example: torch.Tensor | None = None
    answers: dict[tuple[str, str], Array] = field(default_factory=dict)
    seconds: float = 0.0

    def answered(self, streams: Sequence[str]) -> KnownAnswers | None:
        """Return what is known of the first images, if it is in all these streams."""
        layers = dict.fromkeys(layer for _, layer in self.answers)
        places = [(stream, layer) for stream in streams for layer in layers]
        unknown = any(place not in self.answers for place in places)
        if not layers or unknown or self.example is None:
            return None
        activations = {
            layer: np.stack([self.answers[stream, layer] for stream in streams]) for layer in layers
        }
        return KnownAnswers(activations, self.seconds, self.example)


class OpenModel(AbstractContextManager["OpenModel"]):
    """Runs one model in this process, as a `Compute`: its layers and fastest plan are found once.

    Parameters
    ----------
    plans : PlanCache, optional
        Where the fastest plan is looked for, and kept.
    found : FoundLayers, optional
        Of this model, read for the same layers: they are looked for once.
    """

    def __init__(self, plans: PlanCache | None = None, found: FoundLayers | None = None) -> None:
        self._plans = plans
        self._found = FoundLayers() if found is None else found
        self._stack = ExitStack()
        self._opened: _Opened | None = None

    def __exit__(self, *_: object) -> None:
        self._opened = None
        self._stack.close()

    def __call__(
        self,
        module: nn.Module,
        batches: ProbingBatches,
        execution: ExecutionConfig,
        shard: ImageShard,
    ) -> Generator[ActivationChunk, None, None]:
        """Give the activations piece by piece; after the first call, of the same model."""
        rows = int(shard.expected * (shard.last - shard.first) * len(shard.streams))
        if self._opened is None:
            self._opened = self._open(module, batches, execution, shard, rows)
        else:
            self._opened.executor.expect(rows)
        return self._chunks(self._opened, batches, execution, shard)

    def _open(
        self,
        module: nn.Module,
        batches: ProbingBatches,
        execution: ExecutionConfig,
        shard: ImageShard,
        rows: int,
    ) -> _Opened:
        with ExitStack() as stack:
            stack.enter_context(ONE_AT_A_TIME)
            stack.enter_context(preserved(module))
            threads = execution.threads
            if execution.tuning and batches.device.type == "cpu":
                threads = free_threads(threads)
            stack.enter_context(using_threads(threads))
            recorder, weights = self._layers(module, batches, execution)
            stack.enter_context(recorder)
            executor = stack.enter_context(
                Executor(
                    recorder,
                    execution.plan,
                    rows,
                    tuning=execution.tuning,
                    # What is cached was float32: see `filling.fill`.
                    only_float32=len(shard.streams) < len(batches.streams)
                    or not execution.lower_precision,
                    sizes=execution.sizes,
                    known=None if shard.first else self._found.answered(shard.streams),
                    converter=self._found.converter,
                    remembered=None if self._plans is None else self._plans.load(),
                )
            )
            if self._plans is not None:
                # Also when a gate ends the probe early.
                stack.callback(self._keep, executor)
            self._stack = stack.pop_all()
        return _Opened(module, recorder, executor, weights, threads)

    def _layers(
        self, module: nn.Module, batches: ProbingBatches, execution: ExecutionConfig
    ) -> tuple[ActivationRecorder, str]:
        found = self._found
        if found.recorder is None or found.recorder.entered:
            # Layers are told apart by comparing numbers: in full precision.
            example = batches.example()
            found.example = example.clone()  # the model may work in place
            with (
                computing_in("float32", batches.device),
                explained(module, example, "finding its layers"),
            ):
                found.recorder = _recorder(module, execution, example)
            found.converter = Converter(found.recorder)
            with found.recorder:
                found.weights = found.recorder.weights()
        return found.recorder, found.weights

    def _keep(self, executor: Executor) -> None:
        if self._plans is not None and executor.tuned:
            self._plans.save(executor.plan)

    def _chunks(
        self,
        opened: _Opened,
        batches: ProbingBatches,
        execution: ExecutionConfig,
        shard: ImageShard,
    ) -> Generator[ActivationChunk, None, None]:
        images, todo, executor = len(batches.baseline), shard.streams, opened.executor
        with ExitStack() as stack:
            advance = stack.enter_context(progress_bar(images, execution.progress))
            advance(shard.first)
            if batches.decoded is not None and (shard.first, shard.last) == (0, images):
                stack.enter_context(batches.decoded.collecting())
            part = batches.part(shard.first, shard.last, todo)
            inputs = stack.enter_context(
                model_inputs(part, todo, lambda: executor.plan.memory_format)
            )
            executor.prepare(min(part.batch_size, shard.last - shard.first), len(todo))
            for batch in inputs:
                first, last = batch.identities[0], batch.identities[-1]
                with explained(
                    opened.module, batch.values, f"probing images {first!r} to {last!r}"
                ):
                    found = executor(batch.values, len(todo))
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
                    how=_in_words(executor, opened.threads, execution.threads),
                    seconds=executor.seconds,
                    notes=opened.recorder.notes,
                    weights=opened.weights,
                )
                advance(len(batch.identities))
                if execution.progress and not opened.estimated:
                    left = executor.seconds_left
                    opened.estimated = left is not None
                    if left is not None and left >= _WORTH_SAYING:
                        current_run().on_estimate(images, left)


@dataclass
class _Opened:
    module: nn.Module
    recorder: ActivationRecorder
    executor: Executor
    weights: str
    threads: int
    estimated: bool = False


def _in_words(executor: Executor, threads: int, most: int) -> str:
    parts = [str(executor.plan)]
    if threads < most:
        parts.append(f"{threads} of {most} threads")
    elif executor.plan.openvino:
        parts.append(f"{threads} thread{'s' * (threads > 1)}")
    if executor.shift is not None and executor.plan.precision != "float32":
        parts.append(f"|ΔA| up to {max(executor.shift.largest, 0.001):.3f} by estimate")
    if executor.not_by_openvino and not executor.plan.openvino:
        parts.append(f"not by OpenVINO: {executor.not_by_openvino}")
    return ", ".join(parts)


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
