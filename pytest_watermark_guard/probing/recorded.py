"""The activations that a probe scores, for whoever has another use for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.filling import fill
from pytest_watermark_guard.probing.prepare import ProbeRequest
from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.probing.running import OpenModel
from pytest_watermark_guard.probing.sharing import prepare_with_engine
from pytest_watermark_guard.watermarks.scenarios import AnyScenario


class RecordedActivations(NamedTuple):
    """A model's activations as `probe` scores them.

    Attributes
    ----------
    recording : Recording
        ``recording[stream, layer].columns()`` is an ndarray [n, units], float32 or float64, in
        the order of `identities`; streams are named in `watermarks.streams`. It has labels, the
        units' names and the identity of the weights too.
    identities : tuple of str
        The images' names.
    model : str
        What reports call it.
    baseline : str
        Which images.
    notes : tuple of str
        What was assumed, guessed or left out.
    """

    recording: Recording
    identities: tuple[str, ...]
    model: str
    baseline: str
    notes: tuple[str, ...]


@contextlib.contextmanager
def recorded(
    model: AnyModel,
    images: Any = None,
    scenarios: Sequence[str | AnyScenario] | None = None,
    layers: Sequence[str] | None = None,
    preprocess: Any = "auto",
    *,
    labels: Sequence[int] | Mapping[str, int] | None = None,
    batch_size: int | None = None,
    name: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Iterator[RecordedActivations]:
    """Give the activations that a probe of all images would score, within the block.

    They are computed, or taken from where a probe with the same arguments keeps them; whoever
    comes second runs no model.

    Parameters
    ----------
    model, images, scenarios, layers, preprocess, labels, batch_size, name, progress
        As for `probe`; ``scenarios=()`` runs the model on the images without a mark alone.
    settings
        ``device``, ``precision``, ``max_images``, ``seed``, ``control`` and ``cache`` as for
        `probe`.

    Raises
    ------
    WatermarkGuardError
        As `probe`.
    """
    resolved = current_run().settings.override(
        images=images, scenarios=scenarios, layers=layers, **settings
    )
    context, compute = prepare_with_engine(
        ProbeRequest(
            model,
            resolved,
            preprocess,
            labels=labels,
            batch_size=batch_size,
            progress=progress,
            marked=scenarios is None or resolved.scenarios != (),
        )
    )
    baseline = context.batches.baseline
    with (
        OpenModel(None if context.cache is None else context.cache.plans) as here,
        Recording(context.batches.streams, len(baseline), context.naming) as recording,
    ):
        with context.warning_last():
            fill(context, recording, compute=compute or here)
        yield RecordedActivations(
            recording,
            baseline.identities,
            model=name or context.loaded.name,
            baseline=baseline.description,
            notes=(*context.notes, *recording.notes, *recording.cache_notes),
        )
