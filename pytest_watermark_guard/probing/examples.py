"""Finding the images that move a unit most and least under a mark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_watermark_guard.images.baseline import is_builtin
from pytest_watermark_guard.reports.examples import (
    Examples,
    PredictionExample,
    Shift,
    UnitExamples,
)
from pytest_watermark_guard.watermarks.streams import UNMARKED

if TYPE_CHECKING:
    from pytest_watermark_guard.images.batches import ProbingBatches
    from pytest_watermark_guard.probing.recording import Recording
    from pytest_watermark_guard.reports.scores import Scores

UNITS = 3  # of each layer: the most differentiable ones
IMAGES = 3  # that move most, and as many that move least


def find_examples(
    recording: Recording,
    scores: Mapping[tuple[str, str], Scores],
    batches: ProbingBatches,
    images: Any,
) -> Examples:
    """Find the images of the worst units of each layer.

    Parameters
    ----------
    recording : Recording
        With the activations of all images.
    scores : mapping of (layer, scenario) to Scores
    batches : ProbingBatches
        Where the images come from, in the recording's order.
    images : Any
        The baseline as it was asked for.
    """
    identities = batches.baseline.identities[: len(recording)]
    root = batches.baseline.root
    return Examples(
        tuple(_of_unit(recording, identities, *unit) for unit in _worst(scores)),
        "builtin" if is_builtin(images) else None if root is None else str(root.absolute()),
        batches.preprocessing.fitting,
        tuple(asdict(scenario) for scenario in batches.scenarios),
        tuple(_changed_predictions(recording, identities, scores)),
    )


def _changed_predictions(
    recording: Recording, identities: Sequence[str], scores: Mapping[tuple[str, str], Scores]
) -> Iterator[PredictionExample]:
    """Give for each scenario an image that it makes another class, the one that fires on it most.

    Where no image becomes that class, any that changes.
    """
    for (layer, scenario), of_key in scores.items():
        if layer != "logits":
            continue
        before, after = (recording.classes(stream) for stream in (UNMARKED, scenario))
        changed = np.flatnonzero(before != after)
        if not len(changed):
            continue
        target = int(of_key.auroc.argmax())
        chosen = changed[after[changed] == target]
        if not len(chosen):
            target, chosen = int(after[changed[0]]), changed[after[changed] == after[changed[0]]]
        columns = recording[scenario, layer].columns(*_columns_of(target, of_key))[:, 0]
        image = int(chosen[columns[chosen].argmax()])
        names = (_class_name(of_key, int(classes[image])) for classes in (before, after))
        yield PredictionExample(scenario, identities[image], *names)


def _columns_of(target: int, scores: Scores) -> tuple[int, int]:
    """Return the column of a class; a single logit has one for both of its answers."""
    column = min(target, len(scores.names) - 1)
    return column, column + 1


def _class_name(scores: Scores, index: int) -> str:
    if len(scores.names) == 1:
        return ("no", "yes")[index]
    name = scores.names[index]
    return f"class {index}" if name == str(index) else name


def _worst(scores: Mapping[tuple[str, str], Scores]) -> Iterator[tuple[Scores, int]]:
    """Give each layer's most differentiable units, each under the scenario that it tells best."""
    ranked = sorted(
        (-float(of_key.differentiability[index]), key, int(index))
        for key, of_key in scores.items()
        for index in of_key.ranking()[:UNITS]
    )
    taken: dict[str, set[int]] = {}
    for _, (layer, scenario), index in ranked:
        chosen = taken.setdefault(layer, set())
        if index not in chosen and len(chosen) < UNITS:
            chosen.add(index)
            yield scores[layer, scenario], index


def _of_unit(
    recording: Recording, identities: Sequence[str], scores: Scores, index: int
) -> UnitExamples:
    before, after = (
        recording[stream, scores.layer].columns(index, index + 1)[:, 0].astype(np.float64)
        for stream in (UNMARKED, scores.scenario)
    )
    direction = 1 if scores.auroc[index] >= 0.5 else -1
    order = np.argsort(-direction * (after - before), kind="stable")
    shown = min(IMAGES, len(order) // 2)  # no image is among both
    most, least = (
        tuple(Shift(identities[i], float(before[i]), float(after[i])) for i in chosen)
        for chosen in (order[:shown], order[::-1][:shown])
    )
    return UnitExamples(scores.layer, scores.scenario, index, most, least)
