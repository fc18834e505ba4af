"""What one way to run a model is compared with another on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pytest_watermark_guard.models.running.agreement import (
    MOST_ROWS,
    Activations,
    UnitShifts,
    estimated_shifts,
)

Rows = npt.NDArray[np.intp]


class ComparedPart:
    """The first images of a batch, in all its streams: a unit may be silent without a mark.

    Parameters
    ----------
    batch : Tensor
    streams : int
        How many times the images of the batch come in it.

    Attributes
    ----------
    inputs : Tensor
        A copy: the model may work in place on the batch.
    images : int
        How many there are, each in all streams.
    """

    def __init__(self, batch: torch.Tensor, streams: int) -> None:
        images = len(batch) // streams
        self.images = compared_images(images, streams)
        first = np.arange(self.images)
        self._rows = _in_all_streams(first, images, streams)
        self._streams = streams
        self._expected: Activations = {}
        self.inputs = batch[torch.from_numpy(self._rows).to(batch.device)]

    def expect(self, activations: Activations) -> None:
        """Say what the batch's activations are, of which others may not be far."""
        self._expected = {layer: units[self._rows] for layer, units in activations.items()}

    def shifts(self, found: Activations) -> UnitShifts:
        """Return how far A of each unit is moved by activations of `inputs`, by estimate."""
        return estimated_shifts(self._expected, found, self._streams)


def compared_images(images: int, streams: int) -> int:
    """Return how many of a batch's images are compared, each in all streams."""
    return min(images, max(1, MOST_ROWS // streams))


class KnownAnswers(NamedTuple):
    """What is known of the first images of a run, before it begins.

    Attributes
    ----------
    activations : dict of str to ndarray, shape [streams, images, units]
        By layer: in all streams, the first images.
    seconds : float
        That an input took.
    example : Tensor, shape [n, ...]
        A few inputs, of any of the images.
    """

    activations: Activations
    seconds: float
    example: torch.Tensor

    def rows_of(self, batch: torch.Tensor, streams: int) -> tuple[Rows, Activations]:
        """Return the rows of the first batch of which something is known, and their activations."""
        images = len(batch) // streams
        (known,) = {units.shape[1] for units in self.activations.values()}
        first = np.arange(min(images, known))
        activations = {
            layer: units[:, : len(first)].reshape(-1, units.shape[2])
            for layer, units in self.activations.items()
        }
        return _in_all_streams(first, images, streams), activations


def _in_all_streams(first: Rows, images: int, streams: int) -> Rows:
    """Return the rows of some images in a batch that has all its images once for each stream."""
    return (images * np.arange(streams)[:, None] + first).ravel()
