"""Batches of baseline images with their watermarked copies, ready for a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from pytest_watermark_guard.errors import ImagesError, SettingsError
from pytest_watermark_guard.images.baseline import Baseline, open_baseline
from pytest_watermark_guard.images.decoded import DecodedImages
from pytest_watermark_guard.images.decoding import read_image
from pytest_watermark_guard.images.folder import paired_path
from pytest_watermark_guard.images.looks import Looks, differ_everywhere, look_of, together
from pytest_watermark_guard.images.prefetch import in_turn
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.setting_values import user_path
from pytest_watermark_guard.watermarks.composite import composite
from pytest_watermark_guard.watermarks.control import draw_control
from pytest_watermark_guard.watermarks.draw import draw_watermark
from pytest_watermark_guard.watermarks.scenarios import (
    AnyScenario,
    PairedFolder,
    Scenario,
)
from pytest_watermark_guard.watermarks.streams import UNMARKED, control_of
from pytest_watermark_guard.watermarks.text import Mark, Renderer, parse_color

Pixels = npt.NDArray[np.uint8]
T = TypeVar("T")
_MOST_PIXELS = 2**26  # of an image when it is resized, before it is cropped: 256 MiB
_DECODERS = 2  # threads; Pillow decodes without the interpreter lock


@dataclass(frozen=True)
class ProbingBatch:
    """Some baseline images, as they are and under every scenario.

    Attributes
    ----------
    images : Tensor, shape [B, C, H, W]
        The model's input, without a mark.
    marked : dict of str to Tensor, shape [B, C, H, W]
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
    controls: tuple[str, ...] = ()  # kinds
    decoded: DecodedImages | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of what `pixels` gives: see `watermarks.streams`."""
        drawn = [s.name for s in self.scenarios if isinstance(s, Scenario)]
        return (
            UNMARKED,
            *(scenario.name for scenario in self.scenarios),
            *(control_of(name, kind) for kind in self.controls for name in drawn),
        )

    def part(self, start: int, stop: int, streams: Sequence[str]) -> ProbingBatches:
        """Return the batches of images `start` to `stop`, with what these streams need."""
        needed = tuple(
            s
            for s in self.scenarios
            if not {s.name, *(control_of(s.name, k) for k in self.controls)}.isdisjoint(streams)
        )
        rest = self.baseline.take(range(start, stop))
        return replace(self, baseline=rest, scenarios=needed)

    def __len__(self) -> int:
        return -(-len(self.baseline) // self.batch_size)

    def __iter__(self) -> Iterator[ProbingBatch]:
        for pixels in self.pixels():
            images, *marked = (
                self.preprocessing.to_input(pixels.by_mark[stream].contiguous(), self.dtype)
                for stream in (UNMARKED, *(scenario.name for scenario in self.scenarios))
            )
            names = [scenario.name for scenario in self.scenarios]
            yield ProbingBatch(
                images, dict(zip(names, marked, strict=True)), pixels.identities, pixels.labels
            )

    def pixels(self) -> Generator[PixelBatch, None, None]:
        """Give the same batches before preprocessing.

        Reading, decoding and rendering of the next batch go on while the current one is used.
        """
        with closing(self.jobs()) as jobs:
            yield from in_turn(jobs)

    def jobs(self) -> Generator[Callable[[], PixelBatch], None, None]:
        """Give the batches of `pixels`, each to be put together by a call, in any thread.

        Reading of its images starts when it is given.
        """
        with self.reading() as read:
            for positions in self.positions():
                yield partial(self._together, [read(position, _as_it_is) for position in positions])

    def _together(self, reading: Sequence[Future[DecodedImage]]) -> PixelBatch:
        read = [future.result() for future in reading]
        images = self._stacked([image.pixels for image in read], read)
        by_mark = {UNMARKED: images}
        for index, scenario in enumerate(self.scenarios):
            marks = [image.marks[index] for image in read]
            if isinstance(scenario, PairedFolder):
                by_mark[scenario.name] = self._stacked(marks, read)
                continue
            color = parse_color(scenario)
            by_mark[scenario.name] = composite(images, marks, color)
            for stream in (control_of(scenario.name, kind) for kind in self.controls):
                controls = [image.controls[stream] for image in read]
                by_mark[stream] = composite(images, controls, color)
        return PixelBatch(
            tuple(image.identity for image in read),
            tuple(image.label for image in read),
            together([image.look for image in read]),
            by_mark,
        )

    def for_model(self, model: AnyModel, preprocess: Any = "auto") -> ProbingBatches:
        """Return the same batches, preprocessed for a model."""
        loaded = as_loaded(model)
        preprocessing = resolve_preprocessing(preprocess, loaded.module, loaded.preprocessing)
        return replace(self, preprocessing=preprocessing)

    def example(self) -> torch.Tensor:
        """Return four different inputs [4, C, H, W], every other one marked; two of few images."""
        count = 4 if len(self.baseline) >= 4 else 2
        places = [index * len(self.baseline) // count for index in range(count)]
        (batch,) = replace(self, baseline=self.baseline.take(places), batch_size=count)
        marked = next(iter(batch.marked.values()), batch.images)
        return torch.stack([(marked if n % 2 else batch.images)[n] for n in range(count)])

    def positions(self) -> Iterator[range]:
        """Give each batch's positions in the baseline."""
        all_positions = range(len(self.baseline))
        for start in all_positions[:: self.batch_size]:
            yield all_positions[start : start + self.batch_size]

    @contextmanager
    def reading(self) -> Iterator[Callable[[int, Callable[[DecodedImage], T]], Future[T]]]:
        """Give a function that has an image read, and something done with it, in another thread.

        It takes the image's position in the baseline, and what to call with what was read.
        """
        reader = _Reader(self)
        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="wm-decode") as pool:
            # Someone else's objects are called in the user's thread.
            ours = self.baseline.concurrent and self.preprocessing.geometry is None
            submit = pool.submit if ours else _done
            try:
                yield lambda position, use: submit(lambda: use(reader(position)))
            except BaseException:  # without an error, reads of the last batch may still be wanted
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _stacked(self, pixels: Sequence[Pixels], read: Sequence[DecodedImage]) -> torch.Tensor:
        """Stack [H, W, 3] images into one uint8 tensor [B, 3, H, W] on the device."""
        shapes = {p.shape: r.identity for p, r in zip(pixels, read, strict=True)}
        if len(shapes) > 1:
            first, second = (
                f"{name!r}: {width}x{height} px"
                for (height, width, _), name in list(shapes.items())[:2]
            )
            raise ImagesError(
                f"images differ in size ({first}, {second}) and preprocess leaves sizes as they "
                "are; pass images of one size, or a preprocess with a size"
            )
        stacked = torch.from_numpy(np.stack(pixels))
        if self.device.type == "cuda":
            # From pinned memory, this thread does not wait for the copy.
            stacked = stacked.pin_memory().to(self.device, non_blocking=True)
            return stacked.permute(0, 3, 1, 2).contiguous()
        # Still channels last, as decoded: it is converted only where that is needed.
        return stacked.to(self.device).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class PixelBatch:
    """Some images of a baseline with all their marks, before preprocessing."""

    identities: tuple[str, ...]
    labels: tuple[int | None, ...]
    looks: Looks
    # By scenario, uint8 [B, 3, H, W]; without a mark under `UNMARKED`, which comes first.
    by_mark: dict[str, torch.Tensor]


class DecodedImage(NamedTuple):
    """One image as it is read: its pixels, and for each scenario the mark or the marked copy.

    Controls are by stream.
    """

    identity: str
    label: int | None
    look: Looks
    pixels: Pixels
    marks: list[Any]
    controls: dict[str, Mark]


class _Reader:
    """Reads images of some batches and renders their marks, from any thread."""

    def __init__(self, batches: ProbingBatches) -> None:
        self._batches = batches
        self._renderers: dict[tuple[str, int, int], Renderer] = {}
        # Two threads must not use one font at once, and renderers keep what they have rendered.
        self._lock = threading.Lock()

    def __call__(self, position: int) -> DecodedImage:
        batches = self._batches
        identity = batches.baseline.identities[position]
        pixels = batches.decoded.get(identity) if batches.decoded else None
        if pixels is not None:
            label, size = batches.baseline.labels.get(identity), pixels.shape[1::-1]
        else:
            image, label = batches.baseline.load(position)
            pixels, size = fitted(batches.preprocessing, image, repr(identity)), image.size
            if batches.decoded:
                batches.decoded.put(identity, pixels)
        marks: list[Any] = []
        controls = {}
        for scenario in batches.scenarios:
            if isinstance(scenario, PairedFolder):
                marks.append(self._paired(scenario, identity, size, pixels))
                continue
            mark = self._rendered(scenario, identity, *pixels.shape[:2])
            marks.append(mark)
            for kind in batches.controls:
                control = draw_control(kind, mark, scenario, batches.seed, identity)
                controls[control_of(scenario.name, kind)] = control
        return DecodedImage(identity, label, look_of(pixels), pixels, marks, controls)

    def _rendered(self, scenario: Scenario, identity: str, height: int, width: int) -> Mark:
        draw = draw_watermark(scenario, self._batches.seed, identity)
        key = scenario.name, height, width
        with self._lock:
            if key not in self._renderers:
                self._renderers[key] = Renderer(scenario, height, width)
            return self._renderers[key].render(draw)

    def _paired(
        self, scenario: PairedFolder, identity: str, size: tuple[int, ...], pixels: Pixels
    ) -> Pixels:
        path = paired_path(_folder(scenario), identity)
        copy = read_image(path)
        if copy.size != size:
            raise ImagesError(
                f"scenario {scenario.name!r}: {str(path)!r} has {copy.width}x{copy.height} px, its "
                f"baseline image {size[0]}x{size[1]}; a marked copy must differ by the "
                "mark only"
            )
        marked = fitted(self._batches.preprocessing, copy, repr(str(path)))
        if differ_everywhere(pixels, marked):
            raise ImagesError(
                f"scenario {scenario.name!r}: {str(path)!r} differs from its baseline image nearly "
                "everywhere; a marked copy must differ by the mark only: is it another picture, "
                "turned, or of other colours?"
            )
        return marked


def fitted(preprocessing: Preprocessing, image: Image.Image, where: str) -> Pixels:
    """Resize and crop an image to a model's input; `ImagesError` if that takes too much memory."""
    width, height = preprocessing.scaled(*image.size)
    # What it takes already is bounded by Pillow.
    if width * height > max(_MOST_PIXELS, image.width * image.height):
        raise ImagesError(
            f"images: {where} has {image.width}x{image.height} px and would be resized to "
            f"{width}x{height}, which takes too much memory; crop it, or leave it out"
        )
    return preprocessing.fit(image)


def open_for(
    scenarios: Sequence[AnyScenario],
    images: Any,
    max_images: int | None,
    seed: int,
    labels: Sequence[int] | Mapping[str, int] | None = None,
) -> Baseline:
    """Open the baseline and check that it suits the scenarios."""
    baseline = open_baseline(images, labels)
    for scenario in scenarios:
        if isinstance(scenario, PairedFolder):
            if baseline.root is None:
                raise ImagesError(
                    f"scenario {scenario.name!r} pairs files by name, and the baseline is "
                    f"{baseline.description}; pass images= the folder of its unmarked originals"
                )
            if not _folder(scenario).is_dir():
                raise ImagesError(
                    f"scenario {scenario.name!r}: {scenario.folder!r} is not a folder"
                )
    return baseline if max_images is None else baseline.subset(max_images, seed)


def _folder(scenario: PairedFolder) -> Path:
    return user_path(f"scenario {scenario.name!r}", scenario.folder)


def check_batch_size(batch_size: int) -> None:
    """Raise `SettingsError` unless a batch holds at least one image."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise SettingsError(f"batch_size must be an integer >= 1, got {batch_size!r}")


def _as_it_is(read: DecodedImage) -> DecodedImage:
    return read


def _done(function: Callable[[], T]) -> Future[T]:
    """Call a function now, in this thread, where an executor would call it later."""
    future: Future[T] = Future()
    future.set_result(function())
    return future
