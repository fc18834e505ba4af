"""Images for training a classifier: each with its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.images.baseline import Baseline, open_baseline


def open_labelled(
    which: str,
    images: Any,
    labels: Sequence[int] | Mapping[str, int] | None,
    classes: Sequence[str] | None,
) -> tuple[Baseline, tuple[str, ...] | None]:
    """Open images, and give the names of the classes where subfolders are those.

    Messages call the images `which`. Where `labels` are given, subfolders do not matter; `classes`
    are those that there may be, by default the subfolders. An image that is in none of them is an
    `ImagesError`.
    """
    baseline = open_baseline(images, labels)
    if labels is not None or baseline.labels or baseline.root is None:
        return baseline, None
    folders = [identity.partition("/")[0] for identity in baseline.identities]
    stray = [name for name in baseline.identities if "/" not in name]
    if stray:
        raise ImagesError(
            f"{which}: {stray[0]!r} of {baseline.description} is in no class's subfolder; sort the "
            f"images into one for each class, or pass {which}_labels="
        )
    names = tuple(sorted(set(folders))) if classes is None else tuple(classes)
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise ImagesError(f"{which}: class {unknown[0]!r} does not occur in the training images")
    index = {name: position for position, name in enumerate(names)}
    by_name = {name: index[f] for name, f in zip(baseline.identities, folders, strict=True)}
    return open_baseline(baseline, by_name), names


def known_labels(
    labels: Sequence[int | None], identities: Sequence[str], which: str
) -> npt.NDArray[np.int64]:
    """Return all images' labels, [n]; `ImagesError` if an image has none."""
    if None in labels:
        identity = identities[labels.index(None)]
        raise ImagesError(
            f"{which}: image {identity!r} has no label; give a folder with a subfolder for each "
            f"class, a Dataset of (image, label), or {which}_labels="
        )
    return np.array(labels, dtype=np.int64)
