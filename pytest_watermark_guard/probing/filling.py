"""Filling a recording: from the cache, then by the model, as far as a gate asks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from pytest_watermark_guard.images.looks import Looks
from pytest_watermark_guard.probing import running
from pytest_watermark_guard.probing.caches.activations import CachedActivations
from pytest_watermark_guard.probing.early_stopping import EarlyGate
from pytest_watermark_guard.probing.first_answers import CHANGED, FirstAnswers
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.recording import Activations, Recording
from pytest_watermark_guard.probing.running import Compute, ImageShard

_REPLAYED_AT_ONCE = 64  # images
_EARLY = 0.25  # of all images is what a gate that may stop early can be expected to need


def fill(
    context: ProbeContext,
    recording: Recording,
    gate: EarlyGate | None = None,
    compute: Compute = running.compute,
    answers: FirstAnswers | None = None,
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
    compute : Compute
        Runs the model; default: in this process.
    answers : FirstAnswers, optional
        Of this context, if some are known already.
    """
    answers = answers or FirstAnswers(context)
    cached, outdated = _cached(context, answers, None if gate is None else _REPLAYED_AT_ONCE)
    if outdated:
        recording.cache_notes = (CHANGED,)
    filling = _Filling(context, recording, gate, answers, cached, outdated)
    plan, decided = ("", False) if cached is None else (cached.plan, filling.replay(cached))
    if not decided and len(recording) < len(context.batches.baseline):
        plan = filling.compute(compute)
    if gate is not None and gate.used:  # 0 where the gate has nothing to test
        recording.truncate(gate.used)
    return plan


def _cached(
    context: ProbeContext, answers: FirstAnswers, images: int | None
) -> tuple[CachedActivations | None, bool]:
    """Return what is cached and still is the model's answer, and whether something is not.

    It is of the same images, as far as the first `images` of them tell; None: all of them.
    """
    if context.cache is None:
        return None, False
    batches = context.batches
    cached = context.cache.activations.load(
        batches.streams, context.execution.layers, len(batches.baseline)
    )
    if cached is None or not cached.answers:
        return None, False
    if cached.partial and cached.run:
        return None, False  # what is missing would be computed in another way than the rest
    known = len(cached.looks)
    last = known if images is None else min(images, known)
    if not context.cache.activations.holds(cached, 0, last):
        return None, False
    if answers.are(cached.answers, cached.layers):
        return cached, False
    return None, True


class _Filling:
    """One run of `fill`."""

    def __init__(
        self,
        context: ProbeContext,
        recording: Recording,
        gate: EarlyGate | None,
        answers: FirstAnswers,
        cached: CachedActivations | None,
        outdated: bool,
    ) -> None:
        self._context = context
        self._recording = recording
        self._gate = gate
        self._answers = answers
        self._cached = cached
        self._outdated = outdated
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
            if not self._holds(cached, first, last):
                self._cached = cached.until(first)
                return False
            identities = baseline.identities[first:last]
            labels = [baseline.labels.get(identity) for identity in identities]
            looks = cached.looks[first:last]
            if self._take(cached.part(streams, first, last), labels, identities, looks):
                return True
        return False

    def compute(self, compute: Compute) -> str:
        """Have the rest computed, record and keep it; return how the model was run."""
        plan, changed = self._compute(compute)
        # Nothing is known of what comes now: it ends.
        return self.compute(compute) if changed else plan

    def _holds(self, cached: CachedActivations, first: int, last: int) -> bool:
        """Tell whether cached images are the same; without a gate, that of all is known."""
        cache = self._context.cache
        return self._gate is None or (
            cache is not None and cache.activations.holds(cached, first, last)
        )

    def _compute(self, compute: Compute) -> tuple[str, bool]:
        """Return too whether it ended where an image that is cached has changed."""
        context, recording, cached = self._context, self._recording, self._cached
        batches, tuning = context.batches, context.execution.tuning
        done, images = len(recording), len(batches.baseline)
        known = [s for s in batches.streams if cached is not None and cached.length(s) >= images]
        todo = tuple(stream for stream in batches.streams if stream not in known)
        shard = ImageShard(done, images, todo, _EARLY if self._gate else 1.0)
        # Whether a lower precision was found: of some images at least, what ran is not float32.
        lower = tuning and cached is not None and bool(cached.run)
        plan = "" if cached is None else cached.plan
        # Now: an interruption must not leave activations that cannot be checked.
        answers = {} if context.cache is None else self._answers.of(todo)
        try:
            with closing(compute(context.module, batches, context.execution, shard)) as chunks:
                for chunk in chunks:
                    recording.model_notes, recording.weights = chunk.notes, chunk.weights
                    plan = chunk.how
                    if chunk.plan.precision != "float32":
                        lower |= tuning
                    elif lower:  # tried, and not taken
                        plan += ", some images in bfloat16"
                    activations = chunk.activations
                    if cached is not None:
                        last = done + len(chunk.identities)
                        if known and not self._holds(cached, done, last):
                            self._cached = cached.until(done)
                            return plan, True
                        activations = activations | cached.part(known, done, last)
                        done = last
                    if self._take(activations, chunk.labels, chunk.identities, chunk.looks):
                        break
        finally:  # also what was done before an interruption
            if context.cache is not None and len(recording):
                recording.run = context.cache.activations.save(
                    recording,
                    context.execution.layers,
                    plan,
                    answers,
                    lower=lower,
                    replace=self._outdated,
                )
        return plan, False

    def _take(
        self,
        activations: Activations,
        labels: Sequence[int | None],
        identities: Sequence[str],
        looks: Looks,
    ) -> bool:
        self._recording.append(activations, labels, identities, looks)
        gate = self._gate
        return gate is not None and gate.decided(
            activations, self._recording.names, self._scenarios
        )
