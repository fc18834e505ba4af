"""Whether an encoder is still good for what it was good for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pytest_watermark_guard.images.classes import known_labels, open_labelled
from pytest_watermark_guard.models.linear_probe import HeadTrainer
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.recorded import RecordedActivations, recorded
from pytest_watermark_guard.watermarks.streams import UNMARKED

_LAYER = "features"


@dataclass(frozen=True)
class Utility:
    """An encoder against the one that it was made from.

    Attributes
    ----------
    mean_cosine, least_cosine : float
        Of embeddings of the same image.
    n_images : int
    accuracies : mapping of str to (float, float)
        For each task, of a linear head on the original's embeddings, and of one on the other's.
    """

    mean_cosine: float
    least_cosine: float
    n_images: int
    accuracies: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def measure_utility(
    original: nn.Module | str,
    model: nn.Module | str,
    images: Any = None,
    tasks: Mapping[str, tuple[Any, Any]] | None = None,
    *,
    preprocess: Any = "auto",
    max_images: int = 256,
    **settings: Any,
) -> Utility:
    """Compare an encoder's embeddings with those of the one that it was made from.

    Parameters
    ----------
    original, model : Module or str
    images : optional
        As for `probe`; at most `max_images` of them are used.
    tasks : mapping of str to (train, validation), optional
        Labelled images, each a folder with a subfolder for each class or a Dataset of
        (image, label): a linear head is trained on each encoder's embeddings.
    preprocess : optional
        As for `probe`; the original's holds for both.
    max_images : int, default 256
    **settings
        ``device``, ``precision``, ``seed`` and ``cache`` as for `probe`.

    Returns
    -------
    Utility

    Raises
    ------
    ImagesError
        If an image of a task has no label.
    WatermarkGuardError
        As `probe`.
    """
    first, second = as_loaded(original), as_loaded(model)
    settings["preprocess"] = resolve_preprocessing(preprocess, first.module, first.preprocessing)

    def embedded(encoder: nn.Module, these: Any, **more: Any) -> tuple[Array, RecordedActivations]:
        with recorded(encoder, these, (), (_LAYER,), **settings, **more) as activations:
            # A copy, because the activations end with the recording.
            features = np.array(activations.recording[UNMARKED, _LAYER].columns(), dtype=np.float32)
            return features, activations

    def accuracy(encoder: nn.Module, parts: tuple[Any, Any]) -> float:
        train, classes = open_labelled("train", parts[0], None, None)
        features, activations = embedded(encoder, train)
        labels = known_labels(activations.recording.labels, activations.identities, "train")
        validation, _ = open_labelled("validation", parts[1], None, classes)
        new, activations = embedded(encoder, validation)
        truth = known_labels(activations.recording.labels, activations.identities, "validation")
        trainer = HeadTrainer(features, labels, int(max(labels.max(), truth.max())) + 1, 0)
        right: npt.NDArray[np.bool_] = trainer.on(features)(new).argmax(axis=1) == truth
        return float(right.mean())

    before, _ = embedded(first.module, images, max_images=max_images)
    after, _ = embedded(second.module, images, max_images=max_images)
    cosines = (before * after).sum(axis=1) / (
        np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    )
    accuracies = {
        name: (accuracy(first.module, parts), accuracy(second.module, parts))
        for name, parts in (tasks or {}).items()
    }
    return Utility(float(cosines.mean()), float(cosines.min()), len(cosines), accuracies)
