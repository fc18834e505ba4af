"""What a probe measures: taken from the cache, or found by running the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from pytest_watermark_guard.caching.keys import NoKeyError, digest
from pytest_watermark_guard.models.running.agreement import LARGEST
from pytest_watermark_guard.probing.caches.results import ProbeMeasurement
from pytest_watermark_guard.probing.doubts import doubts_of
from pytest_watermark_guard.probing.early_stopping import EarlyGate
from pytest_watermark_guard.probing.examples import find_examples
from pytest_watermark_guard.probing.filling import fill
from pytest_watermark_guard.probing.first_answers import CHANGED, FirstAnswers
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.probing.running import Compute, OpenModel
from pytest_watermark_guard.probing.scoring import impacts, score
from pytest_watermark_guard.probing.vacuous import dead_units, is_saturated
from pytest_watermark_guard.reports.scores import dead_layers

_ENOUGH = 400  # images, with which a lower precision was measured to move no A further than LARGEST


def measured(
    context: ProbeContext,
    gate: EarlyGate | None,
    compute: Compute | None,
    examples: bool,
    thresholds: Sequence[float] = (),
    whole: bool = False,
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
    thresholds : sequence of float
        On d. Where a faster way to run the model leaves a unit too close to one of them, all units
        are scored again in float32 under the same scenario.
    whole : bool, default False
        Whether they are under all scenarios, for whoever compares with other reports; `examples`
        want it, too.
    """
    cache = context.cache
    asked = None if cache is None else _asked(context, gate, examples, thresholds)
    answers = FirstAnswers(context)
    notes: tuple[str, ...] = ()
    if cache is not None and asked is not None:
        cached = cache.results.load(asked)
        if cached is not None:
            measurement, before = cached
            if answers.are(before, {layer for _, layer in before}):
                return measurement, ()
            notes = (CHANGED,)
    whole = whole or examples
    measure = partial(_measure, compute=compute, examples=examples, answers=answers)
    measurement, small, more = measure(context, gate)
    confirmed = gate is not None and _is_confirmed(gate, measurement)
    if gate is not None and not confirmed:  # only all images can tell
        measurement, small, more = measure(context, None)
    # A precision that was asked for is what is to be gated.
    close = _close_scenarios(measurement, thresholds) if context.execution.tuning else ()
    if close:
        near = f", as a unit was within {_margin(measurement):.2g} of a threshold"
        exact = _in_float32(context)
        anew = exact if whole else _of_scenarios(exact, close)
        first = _of_first_images(anew, measurement.n_images)
        measure = partial(measure, compute=None)  # others are told of the whole probe
        again, _, _ = measure(first, None, doubts=measurement.doubts)
        measurement = _with(measurement, again)
        if gate is not None and confirmed and not _is_confirmed(gate, measurement):
            confirmed = False
            again, _, _ = measure(exact, None)
            measurement = _with(measurement, again)
        measurement = measurement._replace(plan=measurement.plan + near)
    if gate is not None:
        measurement = measurement._replace(early_stop=gate.outcome(confirmed))
    # Of a small probe the activations are kept, which answer other questions too; but not these.
    if cache is not None and asked is not None and (close or not small):
        cache.results.save(asked, measurement, answers.of(context.batches.streams))
    return measurement, tuple(dict.fromkeys((*notes, *more)))


def _is_confirmed(gate: EarlyGate, measurement: ProbeMeasurement) -> bool:
    """Tell whether a gate that ended a probe early is borne out by its scores."""
    # A layer that never changes may do so on the images to come.
    dead = dead_layers(measurement.dead_units, measurement.scores.values())
    return gate.confirmed_by(measurement.scores) and not dead


def _close_scenarios(measurement: ProbeMeasurement, thresholds: Sequence[float]) -> tuple[str, ...]:
    """Return those with a unit so near to a threshold that a lower precision may have decided."""
    if "bfloat16" not in measurement.plan:
        return ()
    margin = _margin(measurement)
    close = [
        scenario
        for (_, scenario), scores in measurement.scores.items()
        for threshold in thresholds
        if (np.abs(scores.differentiability - threshold) <= margin).any()
    ]
    return tuple(dict.fromkeys(close))


def _margin(measurement: ProbeMeasurement) -> float:
    """Return how far a lower precision may have moved A: with few images by chance as well."""
    return LARGEST * max(1.0, math.sqrt(_ENOUGH / measurement.n_images))


def _in_float32(context: ProbeContext) -> ProbeContext:
    """Return the same probe in float32; what is cached may be of a lower precision."""
    execution = replace(context.execution, lower_precision=False)
    return context._replace(execution=execution, cache=None)


def _of_first_images(context: ProbeContext, images: int) -> ProbeContext:
    """Return the probe of the images that an early end left."""
    baseline = context.batches.baseline.take(range(images))
    return context._replace(batches=replace(context.batches, baseline=baseline))


def _of_scenarios(context: ProbeContext, names: Sequence[str]) -> ProbeContext:
    """Return the probe of some of its scenarios."""
    scenarios = tuple(s for s in context.batches.scenarios if s.name in names)
    return context._replace(batches=replace(context.batches, scenarios=scenarios))


def _with(before: ProbeMeasurement, again: ProbeMeasurement) -> ProbeMeasurement:
    """Put what was measured again, of all scenarios or some, in the place of what was before."""
    scenarios = {scenario for _, scenario in again.scores}
    if scenarios == {scenario for _, scenario in before.scores}:
        return again._replace(plan=f"{again.plan}, again")
    return before._replace(
        scores={**before.scores, **again.scores},
        controls={**before.controls, **again.controls},
        controls_alone={**before.controls_alone, **again.controls_alone},
        impact={**before.impact, **again.impact},
        notes=tuple(dict.fromkeys((*before.notes, *again.notes))),
        plan=f"{before.plan}, {' and '.join(sorted(scenarios))} in float32",
    )


def _measure(
    context: ProbeContext,
    gate: EarlyGate | None,
    compute: Compute | None,
    examples: bool,
    answers: FirstAnswers,
    doubts: tuple[str, ...] | None = None,
) -> tuple[ProbeMeasurement, bool, tuple[str, ...]]:
    """Run the model and score its activations; `doubts` are those on the images, where known.

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
    with (
        OpenModel(None if context.cache is None else context.cache.plans, answers.found) as here,
        Recording(batches.streams, len(images), context.naming) as recording,
    ):
        plan = fill(context, recording, gate, compute or here, answers)
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
            doubts=doubts_of(recording, scores, context, here) if doubts is None else doubts,
        )
        return measurement, recording.keepable, recording.cache_notes


def _asked(
    context: ProbeContext, gate: EarlyGate | None, examples: bool, thresholds: Sequence[float]
) -> str | None:
    """Digest what a result depends on beside model and images; None where that cannot be told."""
    baseline = context.batches.baseline
    labels = [baseline.labels.get(identity) for identity in baseline.identities]
    folder = str(baseline.root) if examples else ""
    terms = None if gate is None else gate.terms
    names = context.naming.keywords
    try:
        layers = context.execution.layers
        return digest(context.batches.streams, layers, names, labels, folder, terms, thresholds)
    except NoKeyError:
        return None
