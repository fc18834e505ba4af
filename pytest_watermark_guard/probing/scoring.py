"""From a recording's activations to scores, and to what the marks do to predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.probing.caches.scores import ScoreCache
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.reports.class_counts import ClassCounts
from pytest_watermark_guard.reports.conclusion import LEVEL
from pytest_watermark_guard.reports.impact import Impact, Interval
from pytest_watermark_guard.reports.scores import Scores
from pytest_watermark_guard.statistics.proportions import (
    paired_difference_interval,
    share_interval,
)
from pytest_watermark_guard.watermarks.streams import BLOBS, CONTROLS, STROKES, UNMARKED, control_of

AllScores = dict[tuple[str, str], Scores]
ControlScores = dict[tuple[str, str, str], Scores]


def score(
    recording: Recording, scenarios: Sequence[str], cache: ScoreCache | None = None
) -> tuple[AllScores, AllScores, ControlScores]:
    """Score every layer under every scenario, or take the scores from the cache.

    Returns
    -------
    scores : dict of (layer, scenario) to Scores
        Marked (1) against unmarked (0) images.
    against : dict of (layer, scenario) to Scores
        Marked (1) against scrambled (0) images, for scenarios that were probed with those.
    alone : dict of (layer, scenario, kind) to Scores
        Images with a control (1) against unmarked (0) ones.
    """
    controls = {
        control_of(name, kind): (name, kind)
        for kind in CONTROLS
        for name in scenarios
        if control_of(name, kind) in recording.streams
    }
    pictures = len(np.unique(recording.groups))
    scores: AllScores = {}
    against: AllScores = {}
    alone: ControlScores = {}
    for layer in recording.names:
        pairs = [(UNMARKED, name) for name in scenarios]
        pairs += [(stream, name) for stream, (name, kind) in controls.items() if kind == STROKES]
        pairs += [(UNMARKED, stream) for stream in controls]
        scored = dict(cache.load(recording, layer, pairs)) if cache else {}
        missing = [pair for pair in pairs if pair not in scored]
        if missing:
            new = recording.compare(layer, missing)
            if cache is not None and recording.keepable:
                cache.save(recording, layer, new)
            scored |= new
        for low, high in pairs:
            name, kind = controls.get(high, (high, ""))
            area, error, largest = scored[low, high]
            found = Scores(
                layer,
                name,
                area,
                error,
                len(recording),
                recording.names[layer],
                largest,
                None if pictures == len(recording) else pictures,
            )
            if kind:
                alone[layer, name, kind] = found
            else:
                (scores if low == UNMARKED else against)[layer, name] = found
    return scores, against, alone


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
    groups = recording.groups
    return {
        name: prediction_impact(
            chosen[UNMARKED],
            chosen[name],
            names,
            classes,
            chosen.get(control_of(name)),
            chosen.get(control_of(name, BLOBS)),
            groups,
        )
        for name in scenarios
    }


def prediction_impact(
    before: npt.NDArray[np.intp],
    after: npt.NDArray[np.intp],
    names: Sequence[str],
    classes: npt.NDArray[np.int64] | None = None,
    control: npt.NDArray[np.intp] | None = None,
    blobs: npt.NDArray[np.intp] | None = None,
    groups: npt.NDArray[np.intp] | None = None,
) -> Impact:
    """Compare a model's predictions without and with the mark.

    Parameters
    ----------
    before, after : ndarray of int, shape [n]
        The same images' `predicted` classes.
    names : sequence of str
        Of the classes.
    classes : ndarray of int64, shape [n], optional
        True classes; −1 where unknown.
    control, blobs : ndarray of int, shape [n], optional
        Classes predicted with the scrambled mark, and with blobs of as much ink.
    groups : ndarray of int, shape [n], optional
        Which picture each image is: near duplicates are one.
    """
    n_classes = max(2, len(names))
    gained = np.bincount(after, minlength=n_classes) - np.bincount(before, minlength=n_classes)
    winner = int(gained.argmax())
    gains = gained[winner] > 0
    if classes is None:
        classes = np.full(len(before), -1)
    known = classes >= 0
    top1_baseline = top1_marked = None
    if known.any():
        top1_baseline = float((before == classes)[known].mean())
        top1_marked = float((after == classes)[known].mean())
    flips = (before != after).astype(int)
    by_control, by_blobs = (
        None if predicted is None else (before != predicted).astype(int)
        for predicted in (control, blobs)
    )
    gained_right = (after == classes).astype(int) - (before == classes)
    own = known & (classes == winner) & gains
    every = np.ones(len(before), dtype=bool)

    def interval(difference: npt.NDArray[Any] | None, of: npt.NDArray[Any]) -> Interval | None:
        if difference is None or not of.any():
            return None
        pictures = None if groups is None else groups[of]
        return paired_difference_interval(difference[of], LEVEL, pictures)

    return Impact(
        flip_rate=float(flips.mean()),
        gains_index=winner if gains else None,
        gains_name=_class_name(winner, names) if gains else None,
        gains_share=float(gained[winner] / len(before)) if gains else 0.0,
        top1_baseline=top1_baseline,
        top1_marked=top1_marked,
        control_flip_rate=None if by_control is None else float(by_control.mean()),
        blob_flip_rate=None if by_blobs is None else float(by_blobs.mean()),
        by_class=ClassCounts.count(before, after, classes, n_classes),
        flip_interval=share_interval(flips, LEVEL, groups),
        beyond_control_interval=interval(None if by_control is None else flips - by_control, every),
        beyond_blobs_interval=interval(None if by_blobs is None else flips - by_blobs, every),
        top1_drop_interval=interval(-gained_right, known),
        gains_gap_interval=interval(gained_right, own),
    )


def _class_name(index: int, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{'' if index else 'not '}{names[0]}"
    return names[index]


def true_classes(
    identities: Sequence[str], labels: Sequence[int | None], names: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Give each image's true class index, −1 where it is unknown.

    A label wins; else an image in a folder called like a class is of that class.

    Raises
    ------
    ImagesError
        If a label is no class index.
    """
    n_classes = max(2, len(names))
    for identity, label in zip(identities, labels, strict=True):
        if label is not None and not 0 <= label < n_classes:
            from_one = label == n_classes and 0 not in labels
            raise ImagesError(
                f"labels: {label} of image {identity!r} is no index of the model's "
                f"{n_classes} classes"
                + (", which count from 0; subtract 1 from every label" if from_one else "")
            )
    by_name = {name: index for index, name in enumerate(names) if not name.isdigit()}
    return np.array(
        [
            by_name.get(identity.split("/")[0], -1) if label is None else label
            for identity, label in zip(identities, labels, strict=True)
        ],
        dtype=np.int64,
    )
