"""Trying a key on a model: on its embeddings, or on nothing but the labels that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError, OwnershipError
from pytest_watermark_guard.models.device import computing_in
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.loading import LoadedModel, as_loaded
from pytest_watermark_guard.models.state import runnable_on
from pytest_watermark_guard.ownership.encoder import (
    CHUNK,
    Encoder,
    Nearness,
    opened,
    pair_nearness,
    read_pixels,
    settings_and_device,
    similarity,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.reports.ownership import Null, OwnershipReport
from pytest_watermark_guard.setting_values import plain_integer
from pytest_watermark_guard.statistics.sign_flips import sign_flip_p_value
from pytest_watermark_guard.version import __version__

N_IMAGES = 16

Predictor: TypeAlias = Callable[[Tensor], Any]
"""From pixels, uint8 [B, 3, H, W], to B class indices, or to scores [B, classes]."""


def verify(
    model: nn.Module | str,
    key: OwnershipKey,
    images: Any = None,
    nulls: Mapping[str, nn.Module | str | OwnershipKey] | None = None,
    *,
    n_images: int = N_IMAGES,
    preprocess: Any = None,
    name: str | None = None,
    device: str | torch.device | None = None,
) -> OwnershipReport:
    """Try a key on a model's embeddings (white box).

    Parameters
    ----------
    model : Module or str
        An encoder, or a classifier that was built on one; what a probe calls its features is used.
    key : OwnershipKey
    images : optional
        As for `probe`; the key need not have been made with them.
    nulls : mapping of str to Module, str or OwnershipKey, optional
        What must find nothing, by name: models that were made without the key (the clean encoder,
        others that were trained independently), and wrong keys, which are tried on the model. They
        are put to the same test, and stand in the report.
    n_images : int, default 16
        A random choice of the images.
    preprocess : optional
        As for `probe`; default the key's.
    name : str, optional
        What the report calls the model.
    device : optional
        As for `probe`.

    Returns
    -------
    OwnershipReport

    Raises
    ------
    OwnershipError
        If the model's input has not the size that the key was made for.
    WatermarkGuardError
        As `probe`.

    Notes
    -----
    The encoder responds to the perturbations already before they are embedded, as they were learned
    on it; so do its relatives. What is tested is therefore not the response, but whether it is
    larger for those that the coins chose. Given the model, the coins are fair and independent if it
    was made without them: the p-value is exact, whatever the model, the images and the
    perturbations are.
    """

    def measured(candidate: nn.Module | str, trial: _Trial, called: str | None) -> OwnershipReport:
        loaded = as_loaded(candidate)
        with trial.opened(loaded, "features") as encoder:
            near = encoder.nearness(trial.key.key_image)
            return trial.report(near, "embeddings", called or loaded.name)

    make_trial = partial(_Trial, images, n_images, preprocess, device)
    return _with_nulls(measured, make_trial, model, key, name, nulls)


def verify_classifier(
    classifier: nn.Module | str | Predictor,
    key: OwnershipKey,
    images: Any = None,
    nulls: Mapping[str, nn.Module | str | Predictor | OwnershipKey] | None = None,
    *,
    n_images: int = N_IMAGES,
    preprocess: Any = None,
    name: str | None = None,
    device: str | torch.device | None = None,
) -> OwnershipReport:
    """Try a key on the predictions of a classifier (black box).

    Parameters
    ----------
    classifier : Module, str or callable
        A model or model spec, of which the largest logit counts; or a function that asks someone
        else's: from pixels (uint8 Tensor [B, 3, H, W], RGB, at the key's size) to B class indices,
        or to a score for each class, floating point [B, classes].
    key, images, nulls, n_images, preprocess, name, device
        As for `verify`. It takes ``n_images × 2 × pairs + 1`` queries. They are asked in an order
        that does not depend on the coins, so that the log of them does not tell which they are.

    Returns
    -------
    OwnershipReport

    Raises
    ------
    OwnershipError
        If the function returns neither labels nor scores for each image, the model has no logits,
        or the size does not fit.
    WatermarkGuardError
        As `probe`.

    Notes
    -----
    As `verify`; in place of the cosine of embeddings, with the share of images that get the key
    image's label, or with the cosine of scores.
    """

    def measured(
        candidate: nn.Module | str | Predictor, trial: _Trial, called: str | None
    ) -> OwnershipReport:
        image = trial.key.key_image
        if not isinstance(candidate, str | nn.Module):
            if not callable(candidate):
                raise OwnershipError(
                    "the classifier must be a model, a model spec, or a function from pixels to "
                    f"labels or scores, not {type(candidate).__name__}"
                )
            own: str = getattr(candidate, "__name__", type(candidate).__name__)
            return trial.report(*_near(candidate, image), called or own)
        loaded = as_loaded(candidate)
        try:
            with trial.opened(loaded, "logits") as model:
                near, access = _near(lambda pixels: model.all(pixels).argmax(1), image)
                return trial.report(near, access, called or loaded.name)
        except LayerError as error:
            raise OwnershipError(
                f"{loaded.name} returns no logits: use verify for an encoder without a head, or "
                "pass a function from pixels to labels"
            ) from error

    make_trial = partial(_Trial, images, n_images, preprocess, device)
    return _with_nulls(measured, make_trial, classifier, key, name, nulls)


_Candidate = TypeVar("_Candidate")


def _with_nulls(
    measured: Callable[[_Candidate, _Trial, str | None], OwnershipReport],
    make_trial: Callable[[OwnershipKey], _Trial],
    model: _Candidate,
    key: OwnershipKey,
    name: str | None,
    nulls: Mapping[str, _Candidate | OwnershipKey] | None,
) -> OwnershipReport:
    """Put a model and its nulls to the same test, and hand the report to the run."""
    trial = make_trial(key)
    report = measured(model, trial, name)
    controls = [
        measured(model, make_trial(null), called)
        if isinstance(null, OwnershipKey)
        else measured(null, trial, called)
        for called, null in (nulls or {}).items()
    ]
    report = replace(
        report, nulls=tuple(Null(null.model, null.p_value, null.effect) for null in controls)
    )
    current_run().on_ownership(report)
    return report


class _Trial:
    """A key, and the images and the device that it is tried with: on a model and on its nulls."""

    def __init__(
        self,
        images: Any,
        n_images: int,
        preprocess: Any,
        device: str | torch.device | None,
        key: OwnershipKey,
    ) -> None:
        settings, self._device = settings_and_device(images=images, device=device)
        plain_integer("n_images", n_images, least=1)
        self.key, self._hash = key, key.hash
        self._preprocess = preprocess
        self._pixels, self._baseline = read_pixels(
            settings.images, key.preprocessing, n_images, (key.seed + 2) % 2**63
        )

    @contextmanager
    def opened(self, loaded: LoadedModel, layer: str) -> Iterator[Encoder]:
        """Open a model on the device, in float32, for input of the key's size."""
        module = runnable_on(loaded.module, self._device)
        preprocessing = self.key.preprocessing
        if self._preprocess is not None:
            preprocessing = resolve_preprocessing(self._preprocess, module, loaded.preprocessing)
        if preprocessing.size != self.key.preprocessing.size:
            raise OwnershipError(
                f"preprocess: the model's input is {preprocessing.size}, and the key's "
                f"perturbations are {self.key.preprocessing.size}; give the model an input of "
                "that size"
            )
        with (
            opened(module, preprocessing, self._device, layer) as encoder,
            computing_in("float32", self._device),
        ):
            yield encoder

    def report(self, nearness: Nearness, access: str, model: str) -> OwnershipReport:
        """Report how near a model finds marked pixels to the key image."""
        chosen, decoys = pair_nearness(nearness, self.key, self._pixels)
        differences = (chosen - decoys).numpy()
        return OwnershipReport(
            model=model,
            access=access,
            key=self._hash,
            p_value=sign_flip_p_value(differences),
            effect=float(differences.mean()),
            differences=tuple(differences.tolist()),
            chosen=float(chosen.mean()),
            decoy=float(decoys.mean()),
            n_images=len(self._pixels),
            images=self._baseline.description,
            queries=2 * self.key.pairs * len(self._pixels) + 1,
            version=__version__,
        )


def _near(predict: Predictor, key_image: Tensor) -> tuple[Nearness, str]:
    """Return how near predictions are to that of the key image, and what they are."""
    wanted = _predicted(predict, key_image[None])
    if wanted.ndim == 2:
        return lambda pixels: similarity(_predicted(predict, pixels), wanted[0]), "scores"
    return lambda pixels: (_predicted(predict, pixels) == wanted).double(), "labels"


def _predicted(predict: Predictor, pixels: Tensor) -> Tensor:
    """Return labels, int64 [n], or scores, float64 [n, classes]."""
    parts = []
    for part in torch.split(pixels, CHUNK):
        answer = predict(part)
        if isinstance(answer, Tensor):
            answer = answer.detach().cpu()
            answer = answer.float() if answer.dtype is torch.bfloat16 else answer
        values = np.asarray(answer)
        labels = values.ndim == 1 and values.dtype.kind in "iu"
        scores = values.ndim == 2 and values.dtype.kind == "f"
        if not (labels or scores) or len(values) != len(part):
            raise OwnershipError(
                f"the classifier must return {len(part)} class indices, or scores of shape "
                f"[{len(part)}, classes], for {len(part)} images, and returned {values.dtype} of "
                f"shape {[*values.shape]}"
            )
        if not np.isfinite(values).all():
            raise OwnershipError("the classifier returned scores that are NaN or infinite")
        parts.append(torch.from_numpy(values.astype(np.int64 if labels else np.float64)))
    return torch.cat(parts)
