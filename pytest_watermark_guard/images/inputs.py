"""A probe's images, with and without their marks, as a model's input."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pytest_watermark_guard.images.batches import DecodedImage, PixelBatch, ProbingBatches
from pytest_watermark_guard.images.looks import Looks, together
from pytest_watermark_guard.images.prefetch import begun, in_turn, one_ahead
from pytest_watermark_guard.watermarks.composite import blended
from pytest_watermark_guard.watermarks.scenarios import PairedFolder
from pytest_watermark_guard.watermarks.streams import CONTROLS, UNMARKED, control_of
from pytest_watermark_guard.watermarks.text import parse_color

Floats = npt.NDArray[np.float32]
_OVERLAPPED = ("cuda",)  # devices for which a thread prepares the next input


class ModelInput(NamedTuple):
    """What a model is run on, and the images that it shows."""

    identities: tuple[str, ...]
    labels: tuple[int | None, ...]
    looks: Looks
    # [streams * images, ...]: all images of the first stream, then all of the second, and so on; in
    # memory that may be used again once the next input is asked for.
    values: torch.Tensor


@contextmanager
def model_inputs(
    batches: ProbingBatches,
    streams: Sequence[str],
    memory_format: Callable[[], torch.memory_format],
) -> Iterator[Iterator[ModelInput]]:
    """Give the batches as a model's input, in order; the next is prepared while one is used.

    Images of the first are read from the beginning of the block, be it asked for or not.
    `memory_format` is asked for each batch; an input may still come in another.
    """
    preprocessing = batches.preprocessing
    overlapped = batches.device.type in _OVERLAPPED
    by_readers = not overlapped and _scaled_by_readers(batches)
    prepare = _from_readers if by_readers else _from_pixels
    with closing(prepare(batches, streams, memory_format)) as jobs:
        # A user's function is called in the user's thread.
        ahead = overlapped and preprocessing.normalize is None
        coming = begun(jobs)
        with closing(one_ahead(coming, batches.device) if ahead else in_turn(coming)) as inputs:
            yield inputs


def _scaled_by_readers(batches: ProbingBatches) -> bool:
    preprocessing = batches.preprocessing
    scaled = preprocessing.normalize is None and batches.dtype is torch.float32
    return scaled and batches.device.type == "cpu" and preprocessing.size is not None


class _Buffers:
    """Memory that is used in turns: one part is filled while the model reads the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = deque([torch.empty(0), torch.empty(0)])

    def next(self, shape: tuple[int, ...], memory_format: torch.memory_format) -> torch.Tensor:
        buffer = self._buffers.popleft()
        if buffer.shape != shape or not buffer.is_contiguous(memory_format=memory_format):
            buffer = torch.empty(shape, device=self._device, memory_format=memory_format)
        self._buffers.append(buffer)
        return buffer


def _from_pixels(
    batches: ProbingBatches,
    streams: Sequence[str],
    memory_format: Callable[[], torch.memory_format],
) -> Generator[Callable[[], ModelInput], None, None]:
    """Give jobs that prepare whole batches at a time, on the device."""
    preprocessing, dtype = batches.preprocessing, batches.dtype
    buffers = _Buffers(batches.device)

    def prepared(put_together: Callable[[], PixelBatch]) -> ModelInput:
        batch = put_together()
        pixels = [batch.by_mark[stream] for stream in streams]
        if preprocessing.normalize is not None or dtype is not torch.float32:
            # A user's function may rely on the usual memory format.
            parts = [preprocessing.to_input(p.contiguous(), dtype) for p in pixels]
            values = torch.cat(parts)
        else:
            count, (_, _, *sides) = len(pixels) * len(pixels[0]), pixels[0].shape
            shape = (count, preprocessing.channels, *sides)
            values = buffers.next(shape, memory_format())
            for part, out in zip(pixels, torch.split(values, len(pixels[0])), strict=True):
                preprocessing.to_input(part, out=out)
        return ModelInput(batch.identities, batch.labels, batch.looks, values)

    with closing(batches.jobs()) as jobs:
        for job in jobs:
            yield partial(prepared, job)


def _from_readers(
    batches: ProbingBatches,
    streams: Sequence[str],
    memory_format: Callable[[], torch.memory_format],
) -> Generator[Callable[[], ModelInput], None, None]:
    """Give jobs whose images are each prepared by the thread that has just read them."""
    size, channels = batches.preprocessing.size, batches.preprocessing.channels
    assert size is not None
    buffers = _Buffers(batches.device)
    fill = _Filler(batches, streams)
    with batches.reading() as read:
        for positions in batches.positions():
            shape = (len(streams) * len(positions), channels, *size)
            values = buffers.next(shape, memory_format())
            rows = values.permute(0, 2, 3, 1).numpy()
            by_stream = rows.reshape(len(streams), len(positions), *size, channels)
            futures = [
                read(position, partial(fill, by_stream[:, place]))
                for place, position in enumerate(positions)
            ]
            yield partial(_filled, futures, values)


def _filled(
    futures: Sequence[Future[tuple[str, int | None, Looks]]], values: torch.Tensor
) -> ModelInput:
    identities, labels, looks = zip(*(future.result() for future in futures), strict=True)
    return ModelInput(identities, labels, together(looks), values)


class _Filler:
    """Writes an image, in all streams, into a model's input."""

    def __init__(self, batches: ProbingBatches, streams: Sequence[str]) -> None:
        self._scale = batches.preprocessing.scale_image
        self._streams = tuple(streams)
        self._scenarios = batches.scenarios

    def __call__(self, out: Floats, read: DecodedImage) -> tuple[str, int | None, Looks]:
        """Write to `out`, float32 [streams, H, W, channels]; returns name, label and look."""
        outputs = dict(zip(self._streams, out, strict=True))
        unmarked = outputs.get(UNMARKED)
        if unmarked is not None:
            self._scale(read.pixels, unmarked)
        for index, scenario in enumerate(self._scenarios):
            if isinstance(scenario, PairedFolder):
                if scenario.name in outputs:
                    self._scale(read.marks[index], outputs[scenario.name])
                continue
            marks = {scenario.name: read.marks[index]}
            for stream in (control_of(scenario.name, kind) for kind in CONTROLS):
                if stream in read.controls:
                    marks[stream] = read.controls[stream]
            color = parse_color(scenario)
            for stream, mark in marks.items():
                if stream not in outputs:
                    continue
                marked = outputs[stream]
                if unmarked is None:
                    self._scale(read.pixels, marked)
                else:
                    marked[:] = unmarked
                under = read.pixels[mark.window]
                self._scale(blended(under, mark.alpha, color), marked[mark.window])
        return read.identity, read.label, read.look
