"""Labels that cannot be right: the model's predictions agree with them no more than by chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Classes = npt.NDArray[np.integer]

_SURE = 5.0  # standard errors above chance
_AGREEING = 0.25  # least share of images that an explanation makes right


def label_note(truth: Classes, predicted: Classes, names: Sequence[str]) -> Iterator[str]:
    """Say that labels do not fit the predictions, and what would make them fit.

    Parameters
    ----------
    truth, predicted : ndarray of int, shape [n]
        Labels, and the model's classes for the same images without marks.
    names : sequence of str
        Of the classes.
    """
    classes = max(2, len(names))
    right = _Agreement(truth, predicted, classes)
    if len(np.unique(predicted)) < 2 or len(np.unique(truth)) < 2:
        return
    now = f"top-1 is {right.share:.1%} as they are"
    explained = [
        (_Agreement(read, predicted, classes), what)
        for read, what in _readings(truth, predicted, names)
    ]
    best, what = max(explained, key=lambda one: one[0].share)
    # Some classes may stand at their own place in another list too.
    if best.explains and best.share > 2 * right.share:
        yield f"{what}: {now}, and {best.share:.1%} then"
        return
    if right.above_chance:
        return
    consistent = _consistency(truth, predicted)
    commonest = float(np.bincount(predicted).max() / len(predicted))
    if consistent >= max(_AGREEING, commonest + _SURE * right.error):
        yield (
            f"labels look like those of another list of classes: {now}, which is chance, though "
            f"{consistent:.1%} of the images get the prediction that most others of their label "
            "get; pass indices of the model's own outputs, or class_names in their order"
        )
    else:
        yield (
            f"labels do not fit the predictions: {now}, which is chance; check the labels, the "
            "order of class_names, the preprocessing and the weights"
        )


class _Agreement:
    """How often labels and predictions agree, and how often they would by chance."""

    def __init__(self, truth: Classes, predicted: Classes, classes: int) -> None:
        images = len(truth)
        self.share = float((truth == predicted).mean())
        counts = [np.bincount(each, minlength=classes) / images for each in (truth, predicted)]
        self.chance = float(counts[0] @ counts[1])
        self.error = float(np.sqrt(max(self.chance * (1 - self.chance), 1 / images) / images))

    @property
    def above_chance(self) -> bool:
        return self.share > self.chance + 2 * self.error

    @property
    def explains(self) -> bool:
        return self.share >= max(_AGREEING, self.chance + _SURE * self.error)


def _readings(
    truth: Classes, predicted: Classes, names: Sequence[str]
) -> Iterator[tuple[Classes, str]]:
    """Give the labels as they may have been meant, and what is said of that."""
    classes = max(2, len(names))
    shift = int(np.bincount((truth - predicted) % classes, minlength=classes).argmax())
    yield (truth - shift) % classes, _shifted(shift, classes)
    for what, texts in (
        ("class names", names),
        ("class numbers", [str(index) for index in range(classes)]),
    ):
        if len(texts) == classes:
            # Of every place in the list, the class that stands there.
            listed = np.array(sorted(range(classes), key=texts.__getitem__))
            yield (
                listed[truth],
                f"labels look like places in a list of the {what}, sorted as text; pass indices of "
                "the model's own outputs",
            )


def _shifted(shift: int, classes: int) -> str:
    if classes == 2:
        return "labels look swapped, 0 for 1"
    if shift == 1:
        return "labels look shifted by one, counted from 1; subtract 1 from each"
    if shift == classes - 1:
        return "labels look shifted by one, one too low; add 1 to each"
    return f"labels look shifted by {shift}, modulo {classes}"


def _consistency(truth: Classes, predicted: Classes) -> float:
    """Return the share of images with the prediction that most others of their label have."""
    agreeing = 0
    for label in np.unique(truth):
        counts = np.sort(np.unique(predicted[truth == label], return_counts=True)[1])
        second = counts[-2] if len(counts) > 1 else 0
        # Most of the others: without the image itself.
        agreeing += counts[-1] if counts[-1] - 1 > second else 0
    return float(agreeing / len(truth))
