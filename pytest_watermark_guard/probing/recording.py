"""Activations of all images of a probe, with and without every mark."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import NonFiniteActivationsError
from pytest_watermark_guard.images.looks import Looks, near_duplicates, together
from pytest_watermark_guard.probing.activation_buffer import ActivationBuffer, Array
from pytest_watermark_guard.reports.conclusion import LEVEL
from pytest_watermark_guard.statistics.auroc import Floats, PairedAuroc, paired_auroc
from pytest_watermark_guard.statistics.largest import largest_d_bounds, largest_d_interval
from pytest_watermark_guard.watermarks.streams import described

Names = dict[str, tuple[str, ...]]
Naming = Callable[[Mapping[str, int]], tuple[Names, tuple[str, ...]]]
Activations = Mapping[tuple[str, str], Array]
"""By stream and layer, float32 or float64, shape [n, units]."""

_UNITS_AT_ONCE = 256
_SPILL = 2**30  # bytes of activations beyond which they go to a file


class UnitScores(NamedTuple):
    """AUROC and its standard error, each float64 [units], and an interval of the largest d."""

    auroc: Floats
    standard_error: Floats
    largest: tuple[float, float]


class Recording:
    """Grows image by image; use it as a context manager.

    Parameters
    ----------
    streams : sequence of str
        See `watermarks.streams`.
    images : int
        How many there may be.
    naming : callable
        Widths by layer -> the units' names by layer, and notes.

    Attributes
    ----------
    names : dict of str to tuple of str
        The units' names by layer, from the first images on.
    model_notes : tuple of str
        What was guessed or left out when the layers were found.
    weights : str
        Identity of the model below its head, see `models.identity`; empty if unknown.
    labels : list of (int or None)
        One for each image so far.
    identities : list of str
        The images' names.
    run : str
        Which run the activations are kept as, see `caches.activations`.
    cache_notes : tuple of str
        Why something cached was not used.
    """

    def __init__(self, streams: Sequence[str], images: int, naming: Naming) -> None:
        self.streams = tuple(streams)
        self.names: Names = {}
        self.model_notes: tuple[str, ...] = ()
        self.weights = ""
        self.run = ""
        self.cache_notes: tuple[str, ...] = ()
        self._naming_notes: tuple[str, ...] = ()
        self.labels: list[int | None] = []
        self.identities: list[str] = []
        self._looks: list[Looks] = []
        self._groups: npt.NDArray[np.intp] | None = None  # of the images so far, once asked for
        self._images = images
        self._naming = naming
        self._classes: dict[str, list[npt.NDArray[np.intp]]] = {s: [] for s in self.streams}
        self._rows: dict[tuple[str, str], ActivationBuffer] = {}

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        for rows in self._rows.values():
            rows.close()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[str, str]) -> ActivationBuffer:
        """Return the rows of one (stream, layer)."""
        return self._rows[key]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, guessed or left out."""
        return (*self.model_notes, *self._naming_notes)

    def append(
        self,
        activations: Activations,
        labels: Sequence[int | None],
        identities: Sequence[str],
        looks: Looks,
    ) -> None:
        """Add the next images in all streams.

        Raises
        ------
        NonFiniteActivationsError
            If a number is NaN or infinite.
        """
        for (stream, layer), rows in activations.items():
            _check_finite(rows, layer, stream, identities)
        if not self.names:
            # Now, so that wrong class names are said before minutes of probing.
            widths = {layer: rows.shape[1] for (_, layer), rows in activations.items()}
            self.names, self._naming_notes = self._naming(widths)
            self._rows = self._prepared(widths)
        for stream in self.streams if "logits" in self.names else ():
            self._classes[stream].append(predicted(activations[stream, "logits"]))
        for key, rows in activations.items():
            self._rows[key].append(rows)
        self.labels += labels
        self.identities += identities
        self._looks.append(looks)
        self._groups = None

    @property
    def looks(self) -> Looks:
        """What each image looks like, shape [n]."""
        return together(self._looks)[: len(self)]

    @property
    def groups(self) -> npt.NDArray[np.intp]:
        """Which picture each image is, shape [n]: near duplicates are one."""
        if self._groups is None:
            self._groups = near_duplicates(self.looks)
        return self._groups

    def _prepared(self, widths: Mapping[str, int]) -> dict[tuple[str, str], ActivationBuffer]:
        size = 4 * self._images * len(self.streams) * sum(widths.values())
        # Files without a name: a process that is killed leaves none.
        folder = tempfile.gettempdir() if size > _SPILL else None
        return {
            (stream, layer): ActivationBuffer(folder) for stream in self.streams for layer in widths
        }

    def classes(self, stream: str) -> npt.NDArray[np.intp]:
        """Return the class predicted for each image of a stream, where there are logits."""
        return np.concatenate(self._classes[stream])[: len(self)]

    def compare(
        self, layer: str, pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], UnitScores]:
        """Return the scores of pairs of streams: the second against the first.

        Where activations lie in files, a slice of units is scored after the other.
        """
        groups = self.groups
        units, step = len(self.names[layer]), self._units_at_once(layer)
        slices: dict[tuple[str, str], list[PairedAuroc]] = {pair: [] for pair in pairs}
        for start in range(0, units, step):
            columns = {
                stream: self[stream, layer].columns(start, start + step)
                for stream in dict.fromkeys(stream for pair in pairs for stream in pair)
            }
            for low, high in pairs:
                slices[low, high].append(paired_auroc(columns[low], columns[high], groups))
        scores = {}
        for pair, parts in slices.items():
            area, error = map(np.concatenate, zip(*parts, strict=True))
            if step < units:  # not all of them fit into memory
                largest = largest_d_bounds(area, error, len(np.unique(groups)), LEVEL)
            else:
                before, after = (self[stream, layer].columns() for stream in pair)
                paired = PairedAuroc(area, error)
                largest = largest_d_interval(before, after, LEVEL, groups, paired=paired)
            scores[pair] = UnitScores(area, error, largest)
        return scores

    def slices(self, layer: str) -> Iterator[list[Array]]:
        """Give some units of a layer after the other: of each stream, the rows [n, units]."""
        step = self._units_at_once(layer)
        for start in range(0, len(self.names[layer]), step):
            yield [self[stream, layer].columns(start, start + step) for stream in self.streams]

    def _units_at_once(self, layer: str) -> int:
        spilled = any(rows.spilled for rows in self._rows.values())
        return _UNITS_AT_ONCE if spilled else len(self.names[layer])

    def truncate(self, images: int) -> None:
        """Forget all images from number `images` on."""
        del self.labels[images:], self.identities[images:]
        self._groups = None
        for rows in self._rows.values():
            rows.truncate(images)

    @property
    def keepable(self) -> bool:
        """Whether it is small enough to be kept for the next run, as a gate's first images are."""
        return sum(rows.size for rows in self._rows.values()) <= _SPILL


def _check_finite(rows: Array, layer: str, stream: str, identities: Sequence[str]) -> None:
    if np.isfinite(rows).all():
        return
    row, unit = map(int, np.argwhere(~np.isfinite(rows))[0])
    raise NonFiniteActivationsError(
        f"the model returned {rows[row, unit]} in {layer} unit {unit} for image "
        f"{identities[row]!r} {described(stream)}; scores need finite numbers. Check the weights "
        "and the preprocessing, or probe in float32 if this is a half-precision overflow"
    )


def predicted(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """Return each image's class, from logits [n, classes]; a single logit says "yes" above 0."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).astype(np.intp)
    classes: npt.NDArray[np.intp] = logits.argmax(axis=1)
    return classes
