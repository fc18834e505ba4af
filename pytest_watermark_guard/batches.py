"""Batches of baseline images with their watermarked copies, ready for a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pytest_watermark_guard.context import current_run
from pytest_watermark_guard.device import resolve_device
from pytest_watermark_guard.errors import ImagesError, SettingsError
from pytest_watermark_guard.images.baseline import Baseline, open_baseline
from pytest_watermark_guard.images.folder import paired_path, read_image
from pytest_watermark_guard.models.preprocessing import Preprocessing, resolve_preprocessing
from pytest_watermark_guard.models.specs import as_loaded
from pytest_watermark_guard.watermarks.composite import composite
from pytest_watermark_guard.watermarks.draw import draw_watermark
from pytest_watermark_guard.watermarks.scenarios import (
    AnyScenario,
    PairedFolder,
    Scenario,
    resolve_scenarios,
)
from pytest_watermark_guard.watermarks.text import Renderer

Pixels = npt.NDArray[np.uint8]
_DECODERS = 2  # threads; Pillow decodes without the interpreter lock


@dataclass(frozen=True)
class ProbingBatch:
    """Some baseline images, as they are and under every scenario.

    Attributes
    ----------
    images : Tensor, shape [B, 3, H, W]
        The model's input, without a mark.
    marked : dict of str to Tensor, shape [B, 3, H, W]
        By scenario: the same images with it.
    identities : tuple of str
        The images' names.
    labels : tuple of (int or None)
        Class indices, where they are known.
    """

    images: torch.Tensor
    marked: dict[str, torch.Tensor]
    identities: tuple[str, ...]
    labels: tuple[int | None, ...]


@dataclass(frozen=True)
class ProbingBatches:
    """All of a baseline's images and their marked copies; iterate as often as you like.

    Make one with `probing_batches`; under pytest the fixture ``wm_batches`` is one.
    """

    baseline: Baseline
    scenarios: tuple[AnyScenario, ...]
    preprocessing: Preprocessing
    seed: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return -(-len(self.baseline) // self.batch_size)

    def __iter__(self) -> Iterator[ProbingBatch]:
        renderers: dict[tuple[str, int, int], Renderer] = {}
        for chunk, decoded in self._decoded():
            images = _stacked([pixels for pixels, _, _ in decoded], chunk).to(self.device)
            marked = {}
            for index, scenario in enumerate(self.scenarios):
                if isinstance(scenario, PairedFolder):
                    copies = _stacked([pairs[index] for _, pairs, _ in decoded], chunk)
                    marks = copies.to(self.device)
                else:
                    key = (scenario.name, *images.shape[-2:])
                    if key not in renderers:
                        renderers[key] = Renderer(scenario, *images.shape[-2:])
                    marks = self._print(renderers[key], scenario, images, chunk)
                marked[scenario.name] = self.preprocessing.to_input(marks, self.dtype)
            yield ProbingBatch(
                self.preprocessing.to_input(images, self.dtype),
                marked,
                chunk,
                tuple(label for _, _, label in decoded),
            )

    def for_model(self, model: nn.Module | str, preprocess: Any = "auto") -> ProbingBatches:
        """Return the same batches, preprocessed for a model."""
        return probing_batches(
            self.baseline,
            self.scenarios,
            model=model,
            preprocess=preprocess,
            seed=self.seed,
            batch_size=self.batch_size,
            device=str(self.device),
        )

    def example(self) -> torch.Tensor:
        """Return two different inputs, the same whatever the batch size.

        Returns
        -------
        Tensor, shape [2, 3, H, W]
            The first image, and one from the middle with a mark, lest they be the same photo.
        """
        two = self.baseline.take((0, len(self.baseline) // 2))
        (batch,) = replace(self, baseline=two, batch_size=2)
        marked = next(iter(batch.marked.values()))
        return torch.stack([batch.images[0], marked[1]])

    def _print(
        self, renderer: Renderer, scenario: Scenario, images: torch.Tensor, chunk: Sequence[str]
    ) -> torch.Tensor:
        draws = [draw_watermark(scenario, self.seed, identity) for identity in chunk]
        return composite(images, [renderer.render(draw) for draw in draws], renderer.color)

    def _decoded(self) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
        """Read the next batch's images while the current one is worked on."""
        positions = range(len(self.baseline))
        starts = positions[:: self.batch_size]
        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="wm-decode") as pool:
            submit = pool.submit if self.baseline.concurrent else _done
            ahead: deque[list[Future[Any]]] = deque()
            try:
                for start in (*starts, None):
                    if start is not None:
                        batch = positions[start : start + self.batch_size]
                        ahead.append([submit(self._read, position) for position in batch])
                    if len(ahead) > 1 or (start is None and ahead):
                        decoded = [future.result() for future in ahead.popleft()]
                        yield tuple(i for _, _, _, i in decoded), [d[:3] for d in decoded]
            finally:
                for futures in ahead:
                    for future in futures:
                        future.cancel()

    def _read(self, position: int) -> tuple[Pixels, dict[int, Pixels], int | None, str]:
        image, label = self.baseline.load(position)
        identity = self.baseline.identities[position]
        pairs = {}
        for index, scenario in enumerate(self.scenarios):
            if isinstance(scenario, PairedFolder):
                path = paired_path(Path(scenario.folder).expanduser(), identity)
                copy = read_image(path)
                if copy.size != image.size:
                    raise ImagesError(
                        f"scenario {scenario.name!r}: {str(path)!r} has {copy.width}x{copy.height} "
                        f"px, its baseline image {image.width}x{image.height}; a marked copy must "
                        "differ by the mark only"
                    )
                pairs[index] = self.preprocessing.fit(copy)
        return self.preprocessing.fit(image), pairs, label, identity


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


def open_for(
    scenarios: Sequence[AnyScenario],
    images: Any,
    max_images: int | None,
    seed: int,
    labels: Sequence[int] | Mapping[str, int] | None = None,
) -> Baseline:
    """Open the baseline and check that it suits the scenarios.

    Raises
    ------
    ImagesError
        If there are no images, or a `PairedFolder` has no baseline folder to pair with.
    """
    baseline = open_baseline(images, labels)
    for scenario in scenarios:
        if isinstance(scenario, PairedFolder):
            if baseline.root is None:
                raise ImagesError(
                    f"scenario {scenario.name!r} pairs files by name, and the baseline is "
                    f"{baseline.description}; pass images= the folder of its unmarked originals"
                )
            if not Path(scenario.folder).expanduser().is_dir():
                raise ImagesError(
                    f"scenario {scenario.name!r}: {scenario.folder!r} is not a folder"
                )
    return baseline if max_images is None else baseline.subset(max_images, seed)


def check_batch_size(batch_size: int) -> None:
    """Raise `SettingsError` unless a batch holds at least one image."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise SettingsError(f"batch_size must be an integer >= 1, got {batch_size!r}")


def _done(function: Callable[[int], Any], position: int) -> Future[Any]:
    """Call a function now, in this thread, where an executor would call it later."""
    future: Future[Any] = Future()
    future.set_result(function(position))
    return future


def _stacked(pixels: Sequence[Pixels], identities: Sequence[str]) -> torch.Tensor:
    """Stack [H, W, 3] images into one uint8 tensor [B, 3, H, W]."""
    shapes: Mapping[tuple[int, ...], str] = {
        p.shape: i for p, i in zip(pixels, identities, strict=True)
    }
    if len(shapes) > 1:
        (one, first), (other, second) = list(shapes.items())[:2]
        raise ImagesError(
            f"images differ in size ({first!r}: {one[1]}x{one[0]} px, {second!r}: "
            f"{other[1]}x{other[0]} px) and preprocess leaves sizes as they are; pass images of "
            "one size, or a preprocess with a size"
        )
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
