"""What a watermark does to each class: how often it is predicted, and how often rightly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import ReportError

Classes = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class ClassCounts:
    """Numbers of images by class: five tuples of one length."""

    predicted_baseline: tuple[int, ...]
    predicted_marked: tuple[int, ...]
    labelled: tuple[int, ...]  # known to be of the class
    right_baseline: tuple[int, ...]  # of those, predicted as it
    right_marked: tuple[int, ...]

    @classmethod
    def count(cls, before: Classes, after: Classes, truth: Classes, n_classes: int) -> ClassCounts:
        """Count the same images' predicted classes, and true ones (−1: unknown), each [n]."""

        def number(classes: Classes) -> tuple[int, ...]:
            return tuple(np.bincount(classes, minlength=n_classes).tolist())

        return cls(
            number(before),
            number(after),
            number(truth[truth >= 0]),
            number(truth[truth == before]),
            number(truth[truth == after]),
        )

    def share_gap(self, index: int) -> float:
        """Return by how much a class's share of all predictions grows with the mark."""
        grown = self.predicted_marked[index] - self.predicted_baseline[index]
        return grown / sum(self.predicted_baseline)

    def top1_gap(self, index: int) -> float | None:
        """Return by how much the accuracy on a class's own images grows; None if it has none.

        For "carton" under ``imagenet_w`` this is the Carton Gap of Li et al. (2023).
        """
        if not self.labelled[index]:
            return None
        return (self.right_marked[index] - self.right_baseline[index]) / self.labelled[index]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassCounts:
        """Read what `dataclasses.asdict` gave; raises `ReportError` where the classes differ."""
        read = cls(**{name: tuple(map(int, counts)) for name, counts in data.items()})
        if len({len(counts) for counts in vars(read).values()}) > 1:
            raise ReportError("its counts by class are of unequal length")
        return read
