"""Watermarked probing batches for a test of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pytest_watermark_guard.images.batches import ProbingBatches, check_batch_size, open_for
from pytest_watermark_guard.models.device import resolve_device
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, resolve_scenarios


def probing_batches(
    images: Any = None,
    scenarios: Sequence[str | AnyScenario] | None = None,
    *,
    model: nn.Module | str | None = None,
    preprocess: Any = None,
    max_images: int | None = None,
    seed: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
) -> ProbingBatches:
    """Make batches of baseline images and their marked copies.

    Parameters
    ----------
    images, scenarios, max_images, seed, device
        As for `probe`; where not given, the run's settings hold.
    model : Module or str, optional
        Whose preprocessing to use.
    preprocess : optional
        As for `probe`; default ``"auto"`` with a model, ``"imagenet"`` without.
    batch_size : int, default 32
        Baseline images in a batch.

    Returns
    -------
    ProbingBatches
        Iterable, with a length, as often as you like.
    """
    run = current_run()
    settings = run.settings.override(
        images=images, scenarios=scenarios, max_images=max_images, seed=seed, device=device
    )
    check_batch_size(batch_size)
    if preprocess is None:
        preprocess = "imagenet" if model is None else "auto"
    loaded = as_loaded(nn.Identity() if model is None else model)
    preprocessing = resolve_preprocessing(preprocess, loaded.module, loaded.preprocessing)
    resolved = resolve_scenarios(settings.scenarios, run.scenarios)
    return ProbingBatches(
        open_for(resolved, settings.images, settings.max_images, settings.seed),
        resolved,
        preprocessing,
        settings.seed,
        batch_size,
        resolve_device(settings.device, run.worker),
    )
