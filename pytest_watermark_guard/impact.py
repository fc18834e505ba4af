"""What a watermark does to predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.class_counts import ClassCounts
from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.report import Impact


def prediction_impact(
    before: npt.NDArray[np.intp],
    after: npt.NDArray[np.intp],
    names: Sequence[str],
    classes: npt.NDArray[np.int64] | None = None,
    control: npt.NDArray[np.intp] | None = None,
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
    control : ndarray of int, shape [n], optional
        Classes predicted with the scrambled mark.
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
    return Impact(
        flip_rate=float((before != after).mean()),
        gains_index=winner if gains else None,
        gains_name=_class_name(winner, names) if gains else None,
        gains_share=float(gained[winner] / len(before)) if gains else 0.0,
        top1_baseline=top1_baseline,
        top1_marked=top1_marked,
        control_flip_rate=None if control is None else float((before != control).mean()),
        by_class=ClassCounts.count(before, after, classes, n_classes),
    )


def predicted(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """Return each image's class, from logits [n, classes]; a single logit says "yes" above 0."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.intp)
    classes: npt.NDArray[np.intp] = logits.argmax(axis=1)
    return classes


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
            raise ImagesError(
                f"labels: {label} of image {identity!r} is no index of the model's "
                f"{n_classes} classes"
            )
    by_name = {name: index for index, name in enumerate(names) if not name.isdigit()}
    return np.array(
        [
            by_name.get(identity.split("/")[0], -1) if label is None else label
            for identity, label in zip(identities, labels, strict=True)
        ],
        dtype=np.int64,
    )
