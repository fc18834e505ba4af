"""Filling a recording: from the cache, then by the model, as far as a gate asks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial

from pytest_watermark_guard.probing import running
from pytest_watermark_guard.probing.activation_cache import CachedActivations
from pytest_watermark_guard.probing.early_stopping import EarlyGate
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.recording import Activations, Recording
from pytest_watermark_guard.probing.running import Compute, ImageShard

_REPLAYED_AT_ONCE = 64  # images
_EARLY = 0.25  # of all images is what a gate that may stop early can be expected to need


def fill(
    context: ProbeContext,
    recording: Recording,
    gate: EarlyGate | None = None,
    compute: Compute | None = None,
) -> str:
    """Fill a recording, and return how the model was run, in words.

    Parameters
    ----------
    context : ProbeContext
        With its images in random order, if there is a `gate`.
    recording : Recording
        Empty.
    gate : EarlyGate, optional
        May end the run early.
    compute : Compute, optional
        Runs the model; default: in this process.
    """
    batches, cache = context.batches, context.cache
    cached = cache.load(batches.streams, context.execution.layers) if cache else None
    if cached is not None and cached.partial and cached.run:
        cached = None  # what is missing would be computed in another way than the rest
    filling = _Filling(context, recording, gate, cached)
    plan, decided = ("", False) if cached is None else (cached.plan, filling.replay(cached))
    if not decided and len(recording) < len(batches.baseline):
        plan = filling.compute(compute or partial(running.compute, cache=cache))
    if gate is not None and gate.used:  # 0 where the gate has nothing to test
        recording.truncate(gate.used)
    return plan


class _Filling:
    """One run of `fill`."""

    def __init__(
        self,
        context: ProbeContext,
        recording: Recording,
        gate: EarlyGate | None,
        cached: CachedActivations | None,
    ) -> None:
        self._context = context
        self._recording = recording
        self._gate = gate
        self._cached = cached
        self._scenarios = [scenario.name for scenario in context.batches.scenarios]

    def replay(self, cached: CachedActivations) -> bool:
        """Record what is cached; return whether the gate is decided by it."""
        recording, baseline = self._recording, self._context.batches.baseline
        recording.model_notes = cached.notes
        recording.weights = cached.weights
        recording.run = cached.run
        streams = self._context.batches.streams
        for first in range(0, cached.complete, _REPLAYED_AT_ONCE):
            last = min(first + _REPLAYED_AT_ONCE, cached.complete)
            identities = baseline.identities[first:last]
            labels = [baseline.labels.get(identity) for identity in identities]
            if self._take(cached.part(streams, first, last), labels, identities):
                return True
        return False

    def compute(self, compute: Compute) -> str:
        """Have the rest computed, record and keep it; return how the model was run."""
        context, recording, cached = self._context, self._recording, self._cached
        batches, tuning = context.batches, context.execution.tuning
        done, images = len(recording), len(batches.baseline)
        known = [s for s in batches.streams if cached is not None and cached.length(s) >= images]
        todo = tuple(stream for stream in batches.streams if stream not in known)
        shard = ImageShard(done, images, todo, _EARLY if self._gate else 1.0)
        # Whether a lower precision was found: of some images at least, what ran is not float32.
        lower = tuning and cached is not None and bool(cached.run)
        plan = "" if cached is None else cached.plan
        try:
            with closing(compute(context.module, batches, context.execution, shard)) as chunks:
                for chunk in chunks:
                    recording.model_notes, recording.weights = chunk.notes, chunk.weights
                    plan = str(chunk.plan)
                    if chunk.plan.precision != "float32":
                        lower |= tuning
                    elif lower:  # tried, and not taken
                        plan += ", some images in bfloat16"
                    activations = chunk.activations
                    if cached is not None:
                        last = done + len(chunk.identities)
                        activations = activations | cached.part(known, done, last)
                        done = last
                    if self._take(activations, chunk.labels, chunk.identities):
                        break
        finally:  # also what was done before an interruption
            if context.cache is not None and len(recording):
                recording.run = context.cache.save(recording, context.execution.layers, plan, lower)
        return plan

    def _take(
        self, activations: Activations, labels: Sequence[int | None], identities: Sequence[str]
    ) -> bool:
        self._recording.append(activations, labels, identities)
        gate = self._gate
        return gate is not None and gate.decided(
            activations, self._recording.names, self._scenarios
        )
