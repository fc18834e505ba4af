"""Notes on baseline images, labels and answers that put a whole report in doubt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.images.looks import Looks
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.probing.label_order import label_note
from pytest_watermark_guard.probing.marked_baseline import marked_notes
from pytest_watermark_guard.probing.prepare import ProbeContext
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.probing.running import Compute
from pytest_watermark_guard.probing.scoring import AllScores, true_classes
from pytest_watermark_guard.reports.text import count, listed
from pytest_watermark_guard.watermarks.streams import UNMARKED

_FEW = 20  # images
_REPEATED = 1.1  # images for each that counts: intervals too narrow by 5 % or more
_NAMED = 3
_RANKS, _RANKED = 3, 10  # answers, of images: that they fall in all of them is hardly chance
_FIRST = 256  # answers that are looked at


def doubts_of(
    recording: Recording, scores: AllScores, context: ProbeContext, compute: Compute
) -> tuple[str, ...]:
    """Return what a report says first on its images: what is wrong, and what to do.

    Parameters
    ----------
    recording : Recording
    scores : mapping of (layer, scenario) to Scores
        Of the recording.
    context : ProbeContext
    compute : Compute
        Runs the model on other images, in this process.
    """
    return (
        *_on_ranks(recording),
        *_on_number(len(context.batches.baseline)),
        *_on_pictures(recording.looks, context.batches.preprocessing),
        *_on_repetition(recording.groups, recording.identities),
        *marked_notes(recording, scores, context, compute),
        *_on_classes(recording),
    )


def _on_number(images: int) -> Iterator[str]:
    if images < _FEW:
        yield (
            f"the baseline has {count(images, 'image')} only, too few for sure scores; pass a "
            "hundred or more"
        )


def _on_pictures(looks: Looks, preprocessing: Preprocessing) -> Iterator[str]:
    if looks["flat"].all():
        yield (
            "every baseline image is of one flat colour, on which marks stand out as on no photo; "
            "check that the files are read as they should be, and pass photos"
        )
    # Whether someone's function makes use of colour is unknown.
    elif looks["grey"].all() and preprocessing.channels == 3 and preprocessing.normalize is None:
        yield (
            "every baseline image is grey, while the model takes colour: unless it is used on grey "
            "images, pass photos in colour"
        )


def _on_repetition(groups: npt.NDArray[np.intp], identities: Sequence[str]) -> Iterator[str]:
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    images = len(groups)
    if (sizes**2).sum() < _REPEATED * images:
        return
    largest = [i for i in np.argsort(-sizes, kind="stable")[:_NAMED] if sizes[i] > 1]
    names = listed(f"{identities[first[i]]!r} ({sizes[i]:,} times)" for i in largest)
    among = "" if (sizes > 1).sum() <= len(largest) else ", the most frequent"
    yield (
        f"{images:,} baseline images are {count(len(sizes), 'picture')}: near duplicates{among} of "
        f"{names} count as one picture in every interval and verdict; pass different ones"
    )


def _on_ranks(recording: Recording) -> Iterator[str]:
    if "logits" not in recording.names or len(recording) < _RANKED:
        return
    answers = recording[UNMARKED, "logits"].columns(0, _FIRST)
    if answers.shape[1] < _RANKS or (answers[:, 0] == answers[:, -1]).all():
        return
    if (answers[:, :-1] >= answers[:, 1:]).all():
        yield (
            "logits: the answers to every image fall from the first to the last; if the model "
            "returns topk's values, a unit is a rank and no class, so that little can be said of "
            "it: return the logits of all classes"
        )


def _on_classes(recording: Recording) -> Iterator[str]:
    if "logits" not in recording.names:
        return
    names = recording.names["logits"]
    truth = true_classes(recording.identities, recording.labels, names)
    known = truth >= 0
    if not known.any():
        return
    if known.all() and len(names) > 2 and len(truth) >= _FEW and (truth == truth[0]).all():
        yield (
            f"every baseline image is of one class, {names[truth[0]]!r}, by its label: units may "
            "react otherwise on images of other classes; pass images of several"
        )
    elif known.sum() >= _FEW:
        yield from label_note(truth[known], recording.classes(UNMARKED)[known], names)
