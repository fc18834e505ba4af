"""What a probe measures: taken from the cache, or found by running the model."""

from __future__ import annotations

from pytest_watermark_guard.caching.fingerprint import Unfingerprintable, fingerprint
from pytest_watermark_guard.probing.early_stopping import EarlyGate
from pytest_watermark_guard.probing.examples import find_examples
from pytest_watermark_guard.probing.filling import fill
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.probing.result_cache import ProbeMeasurement, keep_result, load_result
from pytest_watermark_guard.probing.running import Compute
from pytest_watermark_guard.probing.scoring import impacts, score


def measured(
    context: ProbeContext, gate: EarlyGate | None, compute: Compute | None, examples: bool
) -> ProbeMeasurement:
    """Return what was measured when the same was asked for, else measure it.

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
    if cache is not None and asked is not None:
        cached = load_result(cache, asked)
        if cached is not None:
            return cached
    measurement, small = _measure(context, gate, compute, examples)
    if gate is not None:
        confirmed = gate.confirmed_by(measurement.scores)
        if not confirmed:  # only all images can tell
            measurement, small = _measure(context, None, compute, examples)
        measurement = measurement._replace(early_stop=gate.outcome(confirmed))
    # Of a small probe the activations are kept, which answer other questions too.
    if cache is not None and asked is not None and not small:
        keep_result(cache, asked, measurement)
    return measurement


def _measure(
    context: ProbeContext, gate: EarlyGate | None, compute: Compute | None, examples: bool
) -> tuple[ProbeMeasurement, bool]:
    """Run the model and score its answers; tell too whether its activations can be kept."""
    batches = context.batches
    images = batches.baseline.identities
    scenarios = [scenario.name for scenario in batches.scenarios]
    with Recording(batches.streams, len(images), context.naming) as recording:
        plan = fill(context, recording, gate, compute)
        scores, controls = score(recording, scenarios, context.cache)
        measurement = ProbeMeasurement(
            n_images=len(recording),
            scores=scores,
            controls=controls,
            impact=impacts(recording, scenarios, images),
            notes=recording.notes,
            plan=plan,
            weights=recording.weights,
            examples=(
                find_examples(recording, scores, batches, context.images) if examples else None
            ),
            early_stop=None,
        )
        return measurement, recording.keepable


def _asked(context: ProbeContext, gate: EarlyGate | None, examples: bool) -> str | None:
    """Digest what a result depends on beside model and images; None where that cannot be told."""
    baseline = context.batches.baseline
    labels = [baseline.labels.get(identity) for identity in baseline.identities]
    folder = str(baseline.root) if examples else ""
    terms = None if gate is None else gate.terms
    names = context.naming.keywords
    try:
        return fingerprint(
            (context.batches.streams, context.execution.layers, names, labels, folder, terms)
        )
    except Unfingerprintable:
        return None
