"""Scores from histograms: memory that does not grow with the images, at a stated error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.recording import Naming, Recording
from pytest_watermark_guard.statistics.auroc import Floats
from pytest_watermark_guard.statistics.histogram import ScoreHistogram, histogram_auroc

_COUNTED_AT_ONCE = 2048  # images; the first so many choose the bins


class BinnedRecording(Recording):
    """Counts activations in bins; what is compared are the counts.

    Parameters
    ----------
    streams, images, naming
        As for `Recording`.
    """

    def __init__(self, streams: Sequence[str], images: int, naming: Naming) -> None:
        super().__init__(streams, images, naming)
        self._waiting: dict[tuple[str, str], list[Array]] = {}
        self._rows_waiting = 0
        self._histograms: dict[tuple[str, str], ScoreHistogram] = {}
        self._bounds: list[float] = []

    @property
    def keepable(self) -> bool:
        """Whether its activations can be kept: there are none."""
        return False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, guessed or left out, and how far off the scores can be."""
        largest = max(self._bounds, default=0.0)
        told = f"A is counted in histograms and off by at most {largest:.2g}; intervals are wide"
        return (*super().notes, told)

    def truncate(self, images: int) -> None:
        """Refuse: counts cannot be taken back."""
        raise NotImplementedError("a histogram does not know its images")

    def _store(self, activations: Mapping[tuple[str, str], Array]) -> None:
        for key, rows in activations.items():
            self._waiting.setdefault(key, []).append(rows)
        self._rows_waiting += len(rows)
        if self._rows_waiting >= _COUNTED_AT_ONCE:
            self._count()

    def _count(self) -> None:
        waiting = {key: np.concatenate(parts) for key, parts in self._waiting.items()}
        for layer in {layer for _, layer in waiting} if not self._histograms else ():
            sample = np.concatenate([waiting[stream, layer] for stream in self.streams])
            first = ScoreHistogram.from_sample(sample)
            for stream in self.streams:
                self._histograms[stream, layer] = ScoreHistogram(first.edges)
        for key, rows in waiting.items():
            self._histograms[key].add(rows)
        self._waiting.clear()
        self._rows_waiting = 0

    def compare(
        self, layer: str, pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], tuple[Floats, Floats]]:
        """Return AUROC and an upper bound of its standard error, for pairs of streams."""
        if self._waiting:
            self._count()
        found = {}
        for low, high in pairs:
            binned = histogram_auroc(self._histograms[low, layer], self._histograms[high, layer])
            found[low, high] = binned.auroc, binned.standard_error
            self._bounds.append(float(binned.bound.max()))
        return found
