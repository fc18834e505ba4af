"""A model over all images of a probe, as far as a verdict needs them and no cache knows them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from pytest_watermark_guard.ahead import one_ahead
from pytest_watermark_guard.batches import PixelBatch, ProbingBatches
from pytest_watermark_guard.caching.activations import ActivationCache, Kept
from pytest_watermark_guard.device import computing_in
from pytest_watermark_guard.early import EarlyGate
from pytest_watermark_guard.models.activations import ActivationRecorder
from pytest_watermark_guard.models.execution import Executor, Plan
from pytest_watermark_guard.models.memory import kept_memory
from pytest_watermark_guard.models.state import preserved
from pytest_watermark_guard.progress import progress_bar
from pytest_watermark_guard.recording import Activations, Recording

# Two probes of one model would switch its mode under each other's feet.
ONE_AT_A_TIME = threading.RLock()
_KEPT_AT_ONCE = 64  # images, where activations are known already
_OVERLAPPED = ("cuda",)  # devices for which a thread prepares the next input
_EARLY = 0.25  # of all images is what a gate that may stop early can be expected to need


@dataclass(frozen=True)
class HowToRun:
    """How to run a model, beside with which images.

    Attributes
    ----------
    layers : tuple of str
        As asked for.
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
    plan: Plan
    tuning: bool
    sizes: bool
    progress: bool


def run(
    module: nn.Module,
    batches: ProbingBatches,
    how: HowToRun,
    recording: Recording,
    gate: EarlyGate | None = None,
    cache: ActivationCache | None = None,
) -> str:
    """Fill a recording, and return how the model was run.

    Parameters
    ----------
    module : torch.nn.Module
    batches : ProbingBatches
        In random order, if there is a `gate`.
    how : HowToRun
    recording : Recording
        Empty.
    gate : EarlyGate, optional
        May end the run early.
    cache : ActivationCache, optional
        Where activations are kept from one run to the next.
    """
    kept = cache.load(batches.streams, how.layers) if cache else None
    if kept is not None and kept.partial and not kept.plan.startswith("float32"):
        kept = None  # streams that are compared must have been computed alike
    scenarios = [scenario.name for scenario in batches.scenarios]

    def take(
        activations: Activations, labels: Sequence[int | None], identities: Sequence[str]
    ) -> bool:
        recording.append(activations, labels, identities)
        return gate is not None and gate.decided(activations, recording.names, scenarios)

    decided = False
    plan = ""
    if kept is not None:
        recording.model_notes = kept.notes
        recording.weights = kept.weights
        plan = kept.plan
        for first in range(0, kept.complete, _KEPT_AT_ONCE):
            last = min(first + _KEPT_AT_ONCE, kept.complete)
            identities = batches.baseline.identities[first:last]
            labels = [batches.baseline.labels.get(identity) for identity in identities]
            decided = take(kept.part(batches.streams, first, last), labels, identities)
            if decided:
                break
    if not decided and len(recording) < len(batches.baseline):
        expected = _EARLY if gate else 1.0
        with closing(_compute(module, batches, how, recording, kept, cache, expected)) as pieces:
            for activations, batch, plan in pieces:  # noqa: B007 - the last plan counts
                if take(activations, batch.labels, batch.identities):
                    break
        if cache is not None:
            # One that goes on in float32 does not make what it went on from float32.
            lower = kept is not None and not kept.plan.startswith("float32")
            cache.save(recording, how.layers, kept.plan if kept and lower else plan, kept)
    if gate is not None and gate.used:  # 0 where the gate has nothing to test
        recording.truncate(gate.used)
    return plan


def _compute(
    module: nn.Module,
    batches: ProbingBatches,
    how: HowToRun,
    recording: Recording,
    kept: Kept | None,
    cache: ActivationCache | None,
    expected: float,
) -> Generator[tuple[Activations, PixelBatch, str], None, None]:
    """Run the model on what is not known yet; gives activations of all streams, and the plan."""
    images = len(batches.baseline)
    done = len(recording)
    todo = [s for s in batches.streams if kept is None or kept.length(s) < images]
    mixed = len(todo) < len(batches.streams)
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(preserved(module))
        if batches.device.type == "cpu":
            stack.enter_context(kept_memory())
        # Layers are told apart by comparing numbers: in full precision.
        with computing_in("float32", batches.device):
            recorder = ActivationRecorder(module, how.layers, batches.example())
        stack.enter_context(recorder)
        recording.model_notes = recorder.notes
        recording.weights = recorder.weights()
        executor = stack.enter_context(
            Executor(
                recorder,
                how.plan,
                int(expected * (images - done) * len(todo)),
                tuning=how.tuning,
                # What is kept was float32: see `run`.
                only_float32=mixed,
                sizes=how.sizes,
                remembered=cache.plan() if cache else None,
            )
        )
        if cache is not None:
            # Also when a verdict ends the run: whoever goes on is not told.
            stack.callback(
                lambda: cache.remember(executor.plan) if executor.tuned and how.sizes else None
            )
        advance = stack.enter_context(progress_bar(images, how.progress))
        advance(done)
        if batches.decoded is not None and not done:
            stack.enter_context(batches.decoded.collecting())
        inputs = _Inputs(batches)

        def prepared(put_together: Callable[[], PixelBatch]) -> tuple[PixelBatch, torch.Tensor]:
            batch = put_together()
            return batch, inputs([batch.by_mark[stream] for stream in todo], executor.plan)

        jobs = stack.enter_context(closing(batches.part(done, todo).jobs()))
        works = (partial(prepared, job) for job in jobs)
        pieces = (work() for work in works)
        # What users wrote is called in their own thread.
        if batches.device.type in _OVERLAPPED and batches.preprocessing.normalize is None:
            pieces = one_ahead(works, batches.device)
        for batch, prepared_input in stack.enter_context(closing(pieces)):
            found = executor(prepared_input)
            activations = {
                (stream, layer): rows
                for layer, units in found.items()
                for stream, rows in zip(todo, np.split(units, len(todo)), strict=True)
            }
            if kept is not None:
                known = [stream for stream in batches.streams if stream not in todo]
                activations |= kept.part(known, done, done + len(batch.identities))
            done += len(batch.identities)
            yield activations, batch, str(executor.plan)
            advance(len(batch.identities))


class _Inputs:
    """Puts images of several streams into one input, in memory that is used again and again."""

    def __init__(self, batches: ProbingBatches) -> None:
        self._preprocessing = batches.preprocessing
        self._dtype = batches.dtype
        # In turns: one is filled while the model reads the other.
        self._buffers = deque([torch.empty(0), torch.empty(0)])

    def __call__(self, pixels: Sequence[torch.Tensor], plan: Plan) -> torch.Tensor:
        if self._preprocessing.normalize is not None or self._dtype is not torch.float32:
            # What others wrote may rely on the usual memory format.
            whole = [p.contiguous() for p in pixels]
            return torch.cat([self._preprocessing.to_input(p, self._dtype) for p in whole])
        device = pixels[0].device
        shape = (sum(map(len, pixels)), *pixels[0].shape[1:])
        buffer = self._buffers.popleft()
        fits = buffer.shape == shape and buffer.device == device
        if not fits or not buffer.is_contiguous(memory_format=plan.memory_format):
            buffer = torch.empty(shape, device=device, memory_format=plan.memory_format)
        self._buffers.append(buffer)
        first = 0
        for part in pixels:
            self._preprocessing.to_input(part, out=buffer[first : first + len(part)])
            first += len(part)
        return buffer
