"""Trying a key on a model: on its embeddings, or on nothing but the labels that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

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
    Nearness,
    of_pairs,
    opened,
    read_pixels,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.report import Null, OwnershipReport
from pytest_watermark_guard.statistics.sign_flips import sign_flip_p_value

N_IMAGES = 16

Labeller: TypeAlias = Callable[[Tensor], Any]
"""From pixels, uint8 [B, 3, H, W], to their B class indices."""


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
    reporting = _Reporting(key, images, n_images, preprocess, device)

    def measured(candidate: nn.Module | str, called: str | None) -> OwnershipReport:
        name, module, preprocessing = reporting.ready(candidate)
        device = reporting.device
        with opened(module, preprocessing, device) as encoder, computing_in("float32", device):
            near = encoder.nearness(key.key_image)
            return reporting.report(near, called or name, "embeddings")

    return _with_nulls(measured, model, name, nulls)


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
    reporting = _Reporting(key, images, n_images, preprocess, device)

    def measured(candidate: nn.Module | str | Labeller, called: str | None) -> OwnershipReport:
        if not isinstance(candidate, str | nn.Module):
            own: str = getattr(candidate, "__name__", type(candidate).__name__)
            return by_labels(candidate, called or own)
        name, module, preprocessing = reporting.ready(candidate)

        def largest(pixels: Tensor) -> Tensor:
            inputs = preprocessing.to_input(pixels.to(reporting.device))
            output, headless = main_tensor(module(inputs))
            if headless:
                raise OwnershipError(
                    f"{name} returns no logits: use verify for an encoder without a head"
                )
            return output.argmax(dim=1)

        with preserved(module), computing_in("float32", reporting.device):
            return by_labels(largest, called or name)

    def by_labels(labeller: Labeller, called: str) -> OwnershipReport:
        wanted = _labels(labeller, key.key_image[None])
        near = lambda pixels: (_labels(labeller, pixels) == wanted).double()  # noqa: E731
        return reporting.report(near, called, "labels")

    return _with_nulls(measured, classifier, name, nulls)


_Candidate = TypeVar("_Candidate")


def _with_nulls(
    measured: Callable[[_Candidate, str | None], OwnershipReport],
    model: _Candidate,
    name: str | None,
    nulls: Mapping[str, _Candidate] | None,
) -> OwnershipReport:
    """Put a model and its nulls to the same test, and tell whoever waits for the report."""
    found = measured(model, name)
    others = [measured(null, called) for called, null in (nulls or {}).items()]
    asked = tuple(Null(other.model, other.p_value, other.effect) for other in others)
    report = replace(found, nulls=asked)
    current_run().on_ownership(report)
    return report


class _Reporting:
    """The same images and device for a model and its nulls."""

    def __init__(
        self,
        key: OwnershipKey,
        images: Any,
        n_images: int,
        preprocess: Any,
        device: str | torch.device | None,
    ) -> None:
        run = current_run()
        settings = run.settings.override(images=images, device=device)
        self.device = resolve_device(settings.device, run.worker)
        self._key, self._hash = key, key.hash
        self._preprocess = preprocess
        self._pixels, self._baseline = read_pixels(
            settings.images, key.preprocessing, n_images, (key.seed + 2) % 2**63
        )

    def ready(self, candidate: nn.Module | str) -> tuple[str, nn.Module, Preprocessing]:
        """Return a model's name, the model on the device, and how its input is made."""
        loaded = as_loaded(candidate)
        module = runnable_on(loaded.module, self.device)
        size = self._key.preprocessing.size
        if self._preprocess is None:
            return loaded.name, module, self._key.preprocessing
        preprocessing = resolve_preprocessing(self._preprocess, module)
        if preprocessing.size != size:
            raise OwnershipError(
                f"preprocess: the model's input is {preprocessing.size}, and the key's "
                f"perturbations are {size}; give the model an input of that size"
            )
        return loaded.name, module, preprocessing

    def report(self, nearness: Nearness, model: str, access: str) -> OwnershipReport:
        """Report how near a model finds marked pixels to the key image."""
        chosen, decoys = of_pairs(nearness, self._key, self._pixels)
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
            queries=2 * self._key.pairs * len(self._pixels) + 1,
            version=pytest_watermark_guard.__version__,
        )


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
