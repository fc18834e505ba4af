"""A model over all images of a probe, as far as a verdict needs them and no cache knows them."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from torch import nn

from pytest_watermark_guard.batches import ProbingBatches
from pytest_watermark_guard.caching.activations import ActivationCache
from pytest_watermark_guard.device import computing_in
from pytest_watermark_guard.early import EarlyGate
from pytest_watermark_guard.inputs import model_inputs
from pytest_watermark_guard.models.activations import ActivationRecorder
from pytest_watermark_guard.models.execution import Executor, Plan
from pytest_watermark_guard.models.memory import kept_memory
from pytest_watermark_guard.models.state import preserved
from pytest_watermark_guard.progress import progress_bar
from pytest_watermark_guard.recording import Activations, Recording
from pytest_watermark_guard.rows import Array

# Two probes of one model would switch its mode under each other's feet.
ONE_AT_A_TIME = threading.RLock()
_KEPT_AT_ONCE = 64  # images, where activations are known already
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


@dataclass(frozen=True)
class Share:
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


class Piece(NamedTuple):
    """What a model answers to a few images, how it was run, and what it told about itself."""

    activations: dict[tuple[str, str], Array]
    identities: tuple[str, ...]
    labels: tuple[int | None, ...]
    plan: str
    notes: tuple[str, ...]
    weights: str


class Compute(Protocol):
    """Runs a model on a share of a probe's images, in order, here or elsewhere."""

    def __call__(
        self, module: nn.Module, batches: ProbingBatches, how: HowToRun, share: Share
    ) -> Generator[Piece, None, None]:
        """Give the activations piece by piece."""


def run(
    module: nn.Module,
    batches: ProbingBatches,
    how: HowToRun,
    recording: Recording,
    gate: EarlyGate | None = None,
    cache: ActivationCache | None = None,
    elsewhere: Compute | None = None,
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
    elsewhere : Compute, optional
        Runs the model in other processes.
    """
    kept = cache.load(batches.streams, how.layers) if cache else None
    if kept is not None and kept.partial and kept.run:
        kept = None  # what is missing would be computed in another way than the rest
    # Whether a faster precision was found: of some images at least, what ran is not float32.
    lower = how.tuning and kept is not None and bool(kept.run)
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
        recording.run = kept.run
        plan = kept.plan
        for first in range(0, kept.complete, _KEPT_AT_ONCE):
            last = min(first + _KEPT_AT_ONCE, kept.complete)
            identities = batches.baseline.identities[first:last]
            labels = [batches.baseline.labels.get(identity) for identity in identities]
            decided = take(kept.part(batches.streams, first, last), labels, identities)
            if decided:
                break
    if not decided and len(recording) < len(batches.baseline):
        done, images = len(recording), len(batches.baseline)
        known = [s for s in batches.streams if kept is not None and kept.length(s) >= images]
        todo = tuple(stream for stream in batches.streams if stream not in known)
        share = Share(done, images, todo, _EARLY if gate else 1.0)
        begun = elsewhere or partial(compute, cache=cache)
        try:
            with closing(begun(module, batches, how, share)) as pieces:
                for piece in pieces:
                    recording.model_notes, recording.weights = piece.notes, piece.weights
                    plan = piece.plan
                    if not plan.startswith("float32"):
                        lower |= how.tuning
                    elif lower:  # tried, and not taken
                        plan += ", some images in bfloat16"
                    activations = piece.activations
                    if kept is not None:
                        last = done + len(piece.identities)
                        activations = activations | kept.part(known, done, last)
                        done = last
                    if take(activations, piece.labels, piece.identities):
                        break
        finally:  # also what was done before an interruption
            if cache is not None and len(recording):
                recording.run = cache.save(recording, how.layers, plan, lower)
    if gate is not None and gate.used:  # 0 where the gate has nothing to test
        recording.truncate(gate.used)
    return plan


def compute(
    module: nn.Module,
    batches: ProbingBatches,
    how: HowToRun,
    share: Share,
    cache: ActivationCache | None = None,
) -> Generator[Piece, None, None]:
    """Run a model in this process; see `Compute`. The fastest plan is kept in a `cache`."""
    images = len(batches.baseline)
    todo = share.streams
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(preserved(module))
        if batches.device.type == "cpu":
            stack.enter_context(kept_memory())
        # Layers are told apart by comparing numbers: in full precision.
        with computing_in("float32", batches.device):
            recorder = ActivationRecorder(module, how.layers, batches.example())
        stack.enter_context(recorder)
        weights = recorder.weights()
        executor = stack.enter_context(
            Executor(
                recorder,
                how.plan,
                int(share.expected * (share.last - share.first) * len(todo)),
                tuning=how.tuning,
                # What is kept was float32: see `run`.
                only_float32=len(todo) < len(batches.streams),
                sizes=how.sizes,
                remembered=cache.plan() if cache else None,
            )
        )
        if cache is not None:
            # Also when a verdict ends the run: whoever goes on is not told.
            stack.callback(lambda: cache.remember(executor.plan) if executor.tuned else None)
        advance = stack.enter_context(progress_bar(images, how.progress))
        advance(share.first)
        if batches.decoded is not None and not share.first:
            stack.enter_context(batches.decoded.collecting())
        part = batches.part(share.first, share.last, todo)
        inputs = model_inputs(part, todo, lambda: executor.plan.memory_format)
        for batch in stack.enter_context(closing(inputs)):
            found = executor(batch.values)
            activations = {
                (stream, layer): rows
                for layer, units in found.items()
                for stream, rows in zip(todo, np.split(units, len(todo)), strict=True)
            }
            told = str(executor.plan), recorder.notes, weights
            yield Piece(activations, batch.identities, batch.labels, *told)
            advance(len(batch.identities))
