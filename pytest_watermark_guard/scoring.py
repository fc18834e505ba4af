"""From a recording's activations to scores, and to what the marks do to predictions."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_watermark_guard.caching.activations import ActivationCache
from pytest_watermark_guard.impact import prediction_impact, true_classes
from pytest_watermark_guard.recording import Recording
from pytest_watermark_guard.report import Impact, Scores
from pytest_watermark_guard.watermarks.streams import UNMARKED, control_of

AllScores = dict[tuple[str, str], Scores]


def score(
    recording: Recording, scenarios: Sequence[str], cache: ActivationCache | None = None
) -> tuple[AllScores, AllScores]:
    """Score every layer under every scenario, or take the scores from where they are kept.

    Returns
    -------
    scores : dict of (layer, scenario) to Scores
        Marked (1) against unmarked (0) images.
    controls : dict of (layer, scenario) to Scores
        Marked (1) against control (0) images, for scenarios that were probed with one.
    """
    controlled = [name for name in scenarios if control_of(name) in recording.streams]
    scores: AllScores = {}
    controls: AllScores = {}
    for layer in recording.names:
        against = [(UNMARKED, name) for name in scenarios]
        against += [(control_of(name), name) for name in controlled]
        found = cache.scores(layer, against, len(recording), recording.run) if cache else {}
        missing = [pair for pair in against if pair not in found]
        if missing:
            new = recording.compare(layer, missing)
            if cache is not None and recording.keepable:
                cache.keep_scores(layer, new, len(recording), recording.run)
            found = {**found, **new}
        for low, name in against:
            area, error = found[low, name]
            (scores if low == UNMARKED else controls)[layer, name] = Scores(
                layer, name, area, error, len(recording), recording.names[layer]
            )
    return scores, controls


def impacts(
    recording: Recording, scenarios: Sequence[str], identities: Sequence[str]
) -> dict[str, Impact]:
    """Say what each scenario does to the model's predictions; nothing without logits.

    Raises
    ------
    ImagesError
        If a label is no class index.
    """
    if "logits" not in recording.names:
        return {}
    names = recording.names["logits"]
    classes = true_classes(identities[: len(recording)], recording.labels, names)
    chosen = {stream: recording.classes(stream) for stream in recording.streams}
    return {
        name: prediction_impact(
            chosen[UNMARKED], chosen[name], names, classes, chosen.get(control_of(name))
        )
        for name in scenarios
    }
