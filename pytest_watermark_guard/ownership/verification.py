"""Trying a key on a model: on its embeddings, or on nothing but the labels that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

import pytest_watermark_guard
from pytest_watermark_guard.context import current_run
from pytest_watermark_guard.device import computing_in, resolve_device
from pytest_watermark_guard.errors import OwnershipError
from pytest_watermark_guard.models.outputs import main_tensor
from pytest_watermark_guard.models.preprocessing import Preprocessing, resolve_preprocessing
from pytest_watermark_guard.models.specs import as_loaded
from pytest_watermark_guard.models.state import preserved, runnable_on
from pytest_watermark_guard.ownership.encoder import (
    CHUNK,
    marked,
    opened,
    read_pixels,
    similarity,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.report import Null, OwnershipReport
from pytest_watermark_guard.statistics.sign_flips import sign_flip_p_value

N_IMAGES = 16

Labeller: TypeAlias = Callable[[Tensor], Any]
"""From pixels, uint8 [B, 3, H, W], to their B class indices."""

# From pixels to how near each is to it, float64 [n].
_Nearness = Callable[[Tensor], Tensor]


def verify(
    model: nn.Module | str,
    key: OwnershipKey,
    images: Any = None,
    nulls: Mapping[str, nn.Module | str] | None = None,
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
    nulls : mapping of str to Module or str, optional
        Models that were made without the key, by name: the clean encoder, others that were trained
        independently. They are put to the same test, and stand in the report.
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

    def measured(candidate: nn.Module | str, called: str | None) -> OwnershipReport:
        loaded = as_loaded(candidate)
        target = _device(device)
        module = runnable_on(loaded.module, target)
        preprocessing = _preprocessing(key, preprocess, module)
        with (
            opened(module, preprocessing, target) as encoder,
            computing_in("float32", target),
        ):
            near = encoder.all(key.key_image[None])[0]
            return _report(
                lambda pixels: similarity(encoder.all(pixels), near).double().cpu(),
                called or loaded.name,
                "embeddings",
            )

    _report = _reporter(key, images, n_images)
    found = measured(model, name)
    others = tuple(_null(measured(null, called)) for called, null in (nulls or {}).items())
    return _told(replace(found, nulls=others))


def verify_classifier(
    classifier: nn.Module | str | Labeller,
    key: OwnershipKey,
    images: Any = None,
    nulls: Mapping[str, nn.Module | str | Labeller] | None = None,
    *,
    n_images: int = N_IMAGES,
    preprocess: Any = None,
    name: str | None = None,
    device: str | torch.device | None = None,
) -> OwnershipReport:
    """Try a key on the labels that a classifier gives (black box).

    Parameters
    ----------
    classifier : Module, str or callable
        A model or model spec, of which the largest logit counts; or a function that asks someone
        else's: from pixels (uint8 Tensor [B, 3, H, W], RGB, at the key's size) to B class indices.
    key, images, nulls, n_images, preprocess, name, device
        As for `verify`. It takes ``n_images × 2 × pairs + 1`` queries.

    Returns
    -------
    OwnershipReport

    Raises
    ------
    OwnershipError
        If the function does not return one whole number for each image, or the size does not fit.
    WatermarkGuardError
        As `probe`.

    Notes
    -----
    As `verify`, with the share of images that get the key image's label in place of the cosine.
    """

    def measured(candidate: nn.Module | str | Labeller, called: str | None) -> OwnershipReport:
        if not isinstance(candidate, str | nn.Module):
            own: str = getattr(candidate, "__name__", type(candidate).__name__)
            return by_labels(candidate, called or own)
        loaded = as_loaded(candidate)
        target = _device(device)
        module = runnable_on(loaded.module, target)
        preprocessing = _preprocessing(key, preprocess, module)

        def largest(pixels: Tensor) -> Tensor:
            output, headless = main_tensor(module(preprocessing.to_input(pixels.to(target))))
            if headless:
                raise OwnershipError(
                    f"{loaded.name} returns no logits: use verify for an encoder without a head"
                )
            return output.argmax(dim=1)

        with preserved(module), computing_in("float32", target):
            return by_labels(largest, called or loaded.name)

    def by_labels(labeller: Labeller, called: str) -> OwnershipReport:
        wanted = _labels(labeller, key.key_image[None])
        return _report(
            lambda pixels: (_labels(labeller, pixels) == wanted).double(), called, "labels"
        )

    _report = _reporter(key, images, n_images)
    found = measured(classifier, name)
    others = tuple(_null(measured(null, called)) for called, null in (nulls or {}).items())
    return _told(replace(found, nulls=others))


def _reporter(
    key: OwnershipKey, images: Any, n_images: int
) -> Callable[[_Nearness, str, str], OwnershipReport]:
    """Return what makes a report of how near a model finds pixels to the key image."""
    settings = current_run().settings.override(images=images)
    pixels, baseline = read_pixels(
        settings.images, key.preprocessing, n_images, (key.seed + 2) % 2**63
    )

    def report(nearness: _Nearness, model: str, access: str) -> OwnershipReport:
        def mean(perturbations: Tensor) -> Tensor:
            return torch.stack([nearness(marked(pixels, w)).mean() for w in perturbations])

        chosen, decoys = mean(key.chosen), mean(key.decoys)
        differences = (chosen - decoys).numpy()
        return OwnershipReport(
            model=model,
            access=access,
            key=key.hash,
            p_value=sign_flip_p_value(differences),
            effect=float(differences.mean()),
            differences=tuple(differences.tolist()),
            chosen=float(chosen.mean()),
            decoy=float(decoys.mean()),
            n_images=len(pixels),
            images=baseline.description,
            queries=2 * key.pairs * len(pixels) + 1,
            version=pytest_watermark_guard.__version__,
        )

    return report


def _labels(labeller: Labeller, pixels: Tensor) -> Tensor:
    parts = []
    for part in torch.split(pixels, CHUNK):
        labels = labeller(part)
        labels = labels.cpu() if isinstance(labels, Tensor) else labels
        values = np.asarray(labels)
        if values.shape != (len(part),) or values.dtype.kind not in "iu":
            raise OwnershipError(
                f"the classifier must return {len(part)} class indices for {len(part)} images, and "
                f"returned {values.dtype} of shape {[*values.shape]}"
            )
        parts.append(torch.from_numpy(values.astype(np.int64)))
    return torch.cat(parts)


def _device(device: str | torch.device | None) -> torch.device:
    run = current_run()
    return resolve_device(run.settings.override(device=device).device, run.worker)


def _preprocessing(key: OwnershipKey, preprocess: Any, module: nn.Module) -> Preprocessing:
    if preprocess is None:
        return key.preprocessing
    preprocessing = resolve_preprocessing(preprocess, module)
    if preprocessing.size != key.preprocessing.size:
        raise OwnershipError(
            f"preprocess: the model's input is {preprocessing.size}, and the key's perturbations "
            f"are {key.preprocessing.size}; give the model an input of that size"
        )
    return preprocessing


def _null(report: OwnershipReport) -> Null:
    return Null(report.model, report.p_value, report.effect)


def _told(report: OwnershipReport) -> OwnershipReport:
    current_run().on_ownership(report)
    return report
