"""Baseline images that look marked already: new marks change little there, and hide reactions.

The model's own detectors tell. Where some of the images carry marks, units of the probe itself see
them. Where most do, no unit reacts any more; then units are taken that react on the built-in
images, and asked whether they answer the baseline as they answer the built-in images when marked.

Measured on MobileNet V2 and two EfficientNet-Lites: without marks, photos of ImageNet and
Caltech-101 lie at −0.2 to 0.15 of the way between the built-in images without marks (0) and with
marks (1); ImageNet's with the authors' own Chinese marks lie at 0.55 to 0.95. Of 200 samples of 40
photos each, none without marks was taken for marked, and 87 to 100 % of those with marks were.
Where only some of 200 photos had marks, 20 to 40 % of them were told on each network, 10 % and
60 % on one of two, 5 % on none.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import ModelError, NonFiniteActivationsError
from pytest_watermark_guard.images.baseline import first_builtin, is_builtin
from pytest_watermark_guard.probing.detectors import best_detectors, of_units, reactions
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.probing.running import Compute, ImageShard
from pytest_watermark_guard.probing.scoring import AllScores, score
from pytest_watermark_guard.reports.text import count, listed
from pytest_watermark_guard.statistics.auroc import auroc
from pytest_watermark_guard.watermarks.scenarios import PairedFolder
from pytest_watermark_guard.watermarks.streams import UNMARKED

_FEWEST = 20  # images: fewer say nothing
_BUILTIN = 40  # images of the built-in set: 4 % of a probe of 998
_UNSEEN = 0.8  # a probe whose largest d is below it may have had nothing left to see
_DETECTOR = 0.8  # least d of a detector, on the built-in images
_DETECTORS = 2
_TOWARDS = 0.4  # of the way from the built-in images without marks to those with them
_LOST = 0.1  # of the detectors' d: it is lower on the baseline by so much
# A part of the images: the share that reacts more than half of the marked copies do.
_OWN_DETECTOR = 0.75  # least d of a detector, on the baseline itself
_OWN_DETECTORS = 3
_SHARE = 0.04
_IMAGES = 4
_EXCESS = 1.15  # times the share that two normal distributions, equally wide, would overlap
_NAMED = 3


def marked_notes(
    recording: Recording, scores: AllScores, context: ProbeContext, compute: Compute
) -> tuple[str, ...]:
    """Say that baseline images look marked, where the model has units to tell by; else nothing."""
    drawn = [s.name for s in context.batches.scenarios if not isinstance(s, PairedFolder)]
    if len(recording) < _FEWEST or not drawn or is_builtin(context.images):
        return ()
    cache = None if context.cache is None else context.cache.notes
    notes = None if cache is None else cache.load(scores)
    if notes is None:
        notes = _found(recording, scores, context, compute, drawn)
        if cache is not None:
            cache.save(scores, notes)
    return notes


def _found(
    recording: Recording,
    scores: AllScores,
    context: ProbeContext,
    compute: Compute,
    drawn: Sequence[str],
) -> tuple[str, ...]:
    unseen = [name for name in drawn if _highest(scores, name) < _UNSEEN]
    # Built-in images at their own size may not be what the model takes.
    if unseen and context.batches.preprocessing.size is not None:
        try:
            note = _all_marked(recording, scores, context, compute, unseen)
        except (ModelError, NonFiniteActivationsError) as error:
            reason, *_ = str(error).splitlines()
            note = f"whether the baseline images look marked already could not be told: {reason}"
        if note is not None:
            return (note,)
    note = _some_marked(recording, scores, drawn)
    return () if note is None else (note,)


def _highest(scores: AllScores, scenario: str) -> float:
    of_scenario = (one for one in scores.values() if one.scenario == scenario)
    return max(float(one.differentiability.max()) for one in of_scenario)


def _all_marked(
    recording: Recording,
    scores: AllScores,
    context: ProbeContext,
    compute: Compute,
    scenarios: Sequence[str],
) -> str | None:
    streams = (UNMARKED, *scenarios)
    batches = replace(
        context.batches,
        baseline=first_builtin(_BUILTIN),
        scenarios=tuple(s for s in context.batches.scenarios if s.name in scenarios),
        controls=(),
        decoded=None,
    )
    execution = replace(context.execution, progress=False)
    shard = ImageShard(0, _BUILTIN, streams)
    found: dict[str, tuple[int, float, float]] = {}
    with Recording(streams, _BUILTIN, context.naming) as builtin:
        with closing(compute(context.module, batches, execution, shard)) as chunks:
            for chunk in chunks:
                builtin.append(chunk.activations, chunk.labels, chunk.identities, chunk.looks)
        there, _, _ = score(builtin, scenarios)
        for scenario in scenarios:
            units = best_detectors(there.values(), scenario, _DETECTOR)
            if len(units) < _DETECTORS:
                continue
            on_builtin = float(np.median([unit.differentiability for unit in units]))
            here = [scores[u.layer, scenario].differentiability[u.index] for u in units]
            on_baseline = float(np.median(here))
            if on_baseline > on_builtin - _LOST:
                continue
            clean = of_units(builtin, UNMARKED, units).mean(0)
            marked = of_units(builtin, scenario, units).mean(0)
            position = (of_units(recording, UNMARKED, units).mean(0) - clean) / (marked - clean)
            if np.median(position) >= _TOWARDS:
                found[scenario] = len(units), on_builtin, on_baseline
    if not found:
        return None
    worst = max(found, key=lambda scenario: found[scenario][1] - found[scenario][2])
    number, on_builtin, on_baseline = found[worst]
    return (
        f"the baseline images look marked already ({listed(found)}), so that new marks change "
        f"little: {number} units that tell {worst} marks on the built-in images (d "
        f"{on_builtin:.2f}) hardly do so here (d {on_baseline:.2f}), and react to these images as "
        "they are like to marked ones; pass images without watermarks or text"
    )


def _some_marked(recording: Recording, scores: AllScores, scenarios: Sequence[str]) -> str | None:
    found: dict[str, npt.NDArray[np.float64]] = {}
    for scenario in scenarios:
        units = best_detectors(scores.values(), scenario, _OWN_DETECTOR)
        if len(units) < _OWN_DETECTORS:
            continue
        both = [of_units(recording, stream, units) for stream in (UNMARKED, scenario)]
        plain, marked = np.split(reactions(np.concatenate(both), units).mean(1), 2)
        above = plain >= np.median(marked)
        area = float(auroc(plain[:, None], marked[:, None])[0])
        if above.sum() >= _IMAGES and above.mean() >= max(_SHARE, _EXCESS * _overlap(area)):
            found[scenario] = np.where(above, plain, -np.inf)
    if not found:
        return None
    worst = max(found, key=lambda scenario: np.isfinite(found[scenario]).sum())
    order = np.argsort(-found[worst], kind="stable")[:_NAMED]
    number = int(np.isfinite(found[worst]).sum())
    return (
        f"at least {number:,} of {count(len(recording), 'baseline image')} look marked already "
        f"({listed(found)}), by the units that tell such marks: look at "
        f"{listed(repr(recording.identities[i]) for i in order)}, and take out those with "
        "watermarks, which hide reactions"
    )


def _overlap(area: float) -> float:
    """Return the share above the other's median, of two normal distributions with this AUROC."""
    if area >= 1:
        return 0.0
    distance = 2**0.5 * NormalDist().inv_cdf(area)
    return 1 - NormalDist().cdf(distance)
