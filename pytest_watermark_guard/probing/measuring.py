"""What a probe measures: taken from the cache, or found by running the model."""

from __future__ import annotations

from pytest_watermark_guard.caching.keys import NoKeyError, digest
from pytest_watermark_guard.probing.caches.results import ProbeMeasurement
from pytest_watermark_guard.probing.doubts import doubts_of
from pytest_watermark_guard.probing.early_stopping import EarlyGate
from pytest_watermark_guard.probing.examples import find_examples
from pytest_watermark_guard.probing.filling import fill
from pytest_watermark_guard.probing.first_answers import CHANGED, FirstAnswers
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.probing.running import Compute
from pytest_watermark_guard.probing.scoring import impacts, score
from pytest_watermark_guard.probing.vacuous import dead_units, is_saturated
from pytest_watermark_guard.reports.scores import dead_layers


def measured(
    context: ProbeContext, gate: EarlyGate | None, compute: Compute | None, examples: bool
) -> tuple[ProbeMeasurement, tuple[str, ...]]:
    """Return what was measured when the same was asked for, else measure it; with notes on that.

    Parameters
    ----------
    context : ProbeContext
    gate : EarlyGate or None
        May end the probe early; where the scores do not bear it out, all images are used.
    compute : Compute or None
        Runs the model; None: in this process.
    examples : bool
        Whether to find the images that move the worst units most and least.
    """
    cache = context.cache
    asked = None if cache is None else _asked(context, gate, examples)
    answers = FirstAnswers(context)
    notes: tuple[str, ...] = ()
    if cache is not None and asked is not None:
        cached = cache.results.load(asked)
        if cached is not None:
            measurement, before = cached
            if answers.are(before, {layer for _, layer in before}):
                return measurement, ()
            notes = (CHANGED,)
    measurement, small, more = _measure(context, gate, compute, examples, answers)
    if gate is not None:
        # A layer that never changes may do so on the images to come.
        dead = dead_layers(measurement.dead_units, measurement.scores.values())
        confirmed = gate.confirmed_by(measurement.scores) and not dead
        if not confirmed:  # only all images can tell
            measurement, small, more = _measure(context, None, compute, examples, answers)
        measurement = measurement._replace(early_stop=gate.outcome(confirmed))
    # Of a small probe the activations are kept, which answer other questions too.
    if cache is not None and asked is not None and not small:
        cache.results.save(asked, measurement, answers.of(context.batches.streams))
    return measurement, tuple(dict.fromkeys((*notes, *more)))


def _measure(
    context: ProbeContext,
    gate: EarlyGate | None,
    compute: Compute | None,
    examples: bool,
    answers: FirstAnswers,
) -> tuple[ProbeMeasurement, bool, tuple[str, ...]]:
    """Run the model and score its activations.

    Returns
    -------
    measurement : ProbeMeasurement
    small : bool
        Whether its activations are few enough to be kept.
    notes : tuple of str
        About the cache.
    """
    batches = context.batches
    images = batches.baseline.identities
    redrawn = batches.preprocessing.geometry is None
    scenarios = [scenario.name for scenario in batches.scenarios]
    with Recording(batches.streams, len(images), context.naming) as recording:
        plan = fill(context, recording, gate, compute, answers)
        cache = None if context.cache is None else context.cache.scores
        scores, controls, alone = score(recording, scenarios, cache)
        measurement = ProbeMeasurement(
            n_images=len(recording),
            scores=scores,
            controls=controls,
            controls_alone=alone,
            impact=impacts(recording, scenarios, images),
            notes=recording.notes,
            plan=plan,
            weights=recording.weights,
            examples=(
                find_examples(recording, scores, batches, context.images)
                if examples and redrawn
                else None
            ),
            early_stop=None,
            dead_units=dead_units(recording),
            saturated=is_saturated(recording),
            doubts=doubts_of(recording, scores, context),
        )
        return measurement, recording.keepable, recording.cache_notes


def _asked(context: ProbeContext, gate: EarlyGate | None, examples: bool) -> str | None:
    """Digest what a result depends on beside model and images; None where that cannot be told."""
    baseline = context.batches.baseline
    labels = [baseline.labels.get(identity) for identity in baseline.identities]
    folder = str(baseline.root) if examples else ""
    terms = None if gate is None else gate.terms
    names = context.naming.keywords
    try:
        return digest(
            context.batches.streams, context.execution.layers, names, labels, folder, terms
        )
    except NoKeyError:
        return None
