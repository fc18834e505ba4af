"""A gate that ends a probe as soon as its verdict is certain enough."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.names import allowed_units
from pytest_watermark_guard.recording import Activations, Names
from pytest_watermark_guard.report import EarlyStop, Scores
from pytest_watermark_guard.statistics.sequential import SequentialGate
from pytest_watermark_guard.watermarks.streams import UNMARKED


class EarlyGate:
    """Watches a probe's activations as they come in.

    Parameters
    ----------
    threshold : float
        On d.
    error : float
        Chance of a verdict other than that of all images.
    allow : mapping of str to str
        Units that the gate leaves aside; see `judge`.
    images : int
        How many there are.
    seed : int
    """

    def __init__(
        self, threshold: float, error: float, allow: Mapping[str, str], images: int, seed: int
    ) -> None:
        self._threshold = threshold
        self._error = error
        self._allow = allow
        self._images = images
        self._gate = SequentialGate(threshold, error, images, seed)
        self._exempt: dict[Hashable, npt.NDArray[np.bool_]] = {}

    def decided(self, activations: Activations, names: Names, scenarios: Sequence[str]) -> bool:
        """Take the next images, and tell whether the verdict is certain enough."""
        keys = [(layer, scenario) for layer in names for scenario in scenarios]
        if not self._exempt:
            for layer, scenario in keys:
                self._exempt[layer, scenario] = allowed_units(layer, names[layer], self._allow)
        self._gate.update(
            {
                (layer, scenario): (activations[UNMARKED, layer], activations[scenario, layer])
                for layer, scenario in keys
            },
            self._exempt,
        )
        return self._gate.verdict is not None

    @property
    def used(self) -> int | None:
        """Number of images that the verdict took; None while there is none."""
        return None if self._gate.verdict is None else self._gate.n_images

    def confirmed_by(self, scores: Iterable[Scores]) -> bool:
        """Tell whether the scores of the images so far say what the gate says, if it does."""
        sensitive = any(
            ((s.differentiability >= self._threshold) & ~self._exempt[s.layer, s.scenario]).any()
            for s in scores
        )
        return self._gate.verdict in (None, "sensitive" if sensitive else "clean")

    def outcome(self) -> EarlyStop:
        """Return what the report says about it."""
        return EarlyStop(self._threshold, self._error, self._gate.verdict, self._images)
