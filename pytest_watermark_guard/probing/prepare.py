"""All that it takes to run a model on a probe's images, made ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_watermark_guard.caching.keys import NoKeyError
from pytest_watermark_guard.caching.store import Store, cache_bytes, cache_folder
from pytest_watermark_guard.images.batches import ProbingBatches, check_batch_size, open_for
from pytest_watermark_guard.images.decoded import DecodedImages
from pytest_watermark_guard.models.adapters.adapter import AdaptedModel
from pytest_watermark_guard.models.device import resolve_device
from pytest_watermark_guard.models.loading.introspection import (
    class_names_of,
    resolve_preprocessing,
)
from pytest_watermark_guard.models.loading.loading import LoadedModel, as_loaded
from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.models.running.threads import share_of_cores
from pytest_watermark_guard.models.state import input_dtype, runnable_on
from pytest_watermark_guard.probing.caches.keys import cache_keys
from pytest_watermark_guard.probing.caches.probe_cache import ProbeCache, open_cache
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.names import unit_names
from pytest_watermark_guard.probing.running import ONE_AT_A_TIME, ExecutionConfig
from pytest_watermark_guard.settings import Settings
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, PairedFolder, resolve_scenarios
from pytest_watermark_guard.watermarks.streams import kinds_of

_PREPARED = {"cpu": 64}  # rows prepared at once, however few the model takes at a time
_PREPARED_ELSEWHERE = 512  # of 224 x 224 pixels; of larger images, as many as take as much memory
_PIXELS = 224 * 224


@dataclass(frozen=True)
class ProbeRequest:
    """What is asked of a probe, before anything is opened or loaded.

    Attributes
    ----------
    model : Module, str, path or callable
    settings : Settings
    preprocess, class_names, labels, batch_size, progress
        As for `probe`.
    marked : bool
        Whether scenarios are printed; else the model sees the images as they are, and no others.
    """

    model: AnyModel
    settings: Settings
    preprocess: Any = "auto"
    class_names: Sequence[str] | Mapping[int, str] | None = None
    labels: Sequence[int] | Mapping[str, int] | None = None
    batch_size: int | None = None
    progress: bool = True
    marked: bool = True

    @property
    def scenarios(self) -> tuple[AnyScenario, ...]:
        """The scenarios that are asked for, by name or as they are."""
        known = current_run().scenarios
        return resolve_scenarios(self.settings.scenarios, known) if self.marked else ()


class ProbeContext(NamedTuple):
    """All that it takes to run a model on a probe's images.

    Attributes
    ----------
    loaded : LoadedModel
    module : Module
        The model on its device.
    batches : ProbingBatches
        The images in random order, with their marks.
    execution : ExecutionConfig
    naming : callable
        See `recording.Naming`.
    cache : ProbeCache or None
    notes : tuple of str
        What was assumed, or could not be had.
    assumptions : tuple of str
        Those of the notes that are guesses.
    images : Any
        The baseline as it was asked for.
    store : Store or None
        Where all that is cached lies; it warns of damage when all is done, see `Store`.
    """

    loaded: LoadedModel
    module: nn.Module
    batches: ProbingBatches
    execution: ExecutionConfig
    naming: partial[Any]
    cache: ProbeCache | None
    notes: tuple[str, ...]
    assumptions: tuple[str, ...]
    images: Any
    store: Store | None

    def warning_last(self) -> AbstractContextManager[None]:
        """Warn of what is wrong with cached files after the block."""
        return nullcontext() if self.store is None else self.store.warning_last()


def prepare(request: ProbeRequest) -> ProbeContext:
    """Load the model and open images and caches; no image is read yet.

    Raises
    ------
    WatermarkGuardError
        As `probe`.
    """
    settings, batch_size = request.settings, request.batch_size
    scenarios = request.scenarios
    device = resolve_device(settings.device, current_run().worker)
    if batch_size is not None:
        check_batch_size(batch_size)
    loaded = as_loaded(request.model)
    with ONE_AT_A_TIME:  # another probe's hooks must not be copied, nor see this model's input
        module, device, placing = _placed(loaded.module, device, settings)
        preprocessing = resolve_preprocessing(request.preprocess, module, loaded.preprocessing)
    baseline = open_for(
        scenarios, settings.images, settings.max_images, settings.seed, labels=request.labels
    )
    controls = kinds_of(settings.control)
    streams = 1 + len(scenarios) * (1 + len(controls))
    height, width = preprocessing.size or (0, 0)
    fitting = _PREPARED_ELSEWHERE * _PIXELS // max(height * width, _PIXELS)
    prepared = max(batch_size or 0, min(fitting, _PREPARED.get(device.type, fitting)))
    batches = ProbingBatches(
        baseline.shuffled(settings.seed),
        scenarios,
        preprocessing,
        settings.seed,
        batch_size=max(1, prepared // streams),
        device=device,
        dtype=input_dtype(module),
        controls=controls,
    )
    threads = share_of_cores(current_run().workers)
    default_size = 64 if device.type != "cpu" else 2 * threads
    adapted = isinstance(module, AdaptedModel)
    bfloat16 = settings.precision == "bfloat16" and not adapted
    execution = ExecutionConfig(
        settings.layers,
        settings.outputs,
        Plan(batch_size or default_size, "bfloat16" if bfloat16 else "float32"),
        tuning=settings.precision == "auto" and batches.dtype is torch.float32,
        sizes=batch_size is None,
        threads=threads,
        progress=request.progress,
    )
    naming = partial(
        unit_names, given=request.class_names, loaded=loaded.class_names or class_names_of(module)
    )
    store = cache = None
    uncached: tuple[str, ...] = ()
    if settings.cache:
        store = Store(cache_folder() / "cache", cache_bytes())
        store.remove_abandoned()
        with ONE_AT_A_TIME:
            batches, cache, uncached = _with_caches(
                store, batches, module, settings, batch_size, threads
            )
    notes = (*preprocessing.notes, *loaded.notes, *placing, *uncached)
    assumptions = preprocessing.assumptions
    return ProbeContext(
        loaded,
        module,
        batches,
        execution,
        naming,
        cache,
        notes,
        assumptions,
        settings.images,
        store,
    )


def _placed(
    module: nn.Module, device: torch.device, settings: Settings
) -> tuple[nn.Module, torch.device, tuple[str, ...]]:
    """Return the model where it runs, and notes on what of the settings does not hold for it."""
    if not isinstance(module, AdaptedModel):
        return runnable_on(module, device), device, ()
    notes = []
    if settings.precision == "bfloat16":
        notes.append(
            f"precision='bfloat16' changes nothing: {module.called} computes {module.computes}"
        )
    if settings.device == "auto":
        module, device, why = module.placed_by_default(device)
        notes += [why] * bool(why)
    else:
        module = module.placed(device)
    return module, device, tuple(notes)


def _with_caches(
    store: Store,
    batches: ProbingBatches,
    module: nn.Module,
    settings: Settings,
    batch_size: int | None,
    threads: int,
) -> tuple[ProbingBatches, ProbeCache | None, tuple[str, ...]]:
    """Open the caches of pixels and activations, or note why no keys for them can be given."""
    how = batches.preprocessing
    size = how.size
    paired = any(isinstance(scenario, PairedFolder) for scenario in batches.scenarios)
    try:
        # Another's code has no digest that would tell when it gives other pixels.
        ours = how.geometry is None and not paired
        if batches.baseline.root is not None and size is not None and ours:
            geometry = size, how.fitting
            decoded = DecodedImages(store, batches.baseline, geometry)
            batches = replace(batches, decoded=decoded)
        asked = settings.precision, settings.outputs, batch_size, threads
        keys = cache_keys(module, batches, *asked)
        return batches, open_cache(store, keys), ()
    except NoKeyError as reason:
        # What cannot be told apart from its like must not be mixed up with it.
        first, *_ = str(reason).splitlines() or [""]
        return batches, None, (f"not cached: {first}",)
