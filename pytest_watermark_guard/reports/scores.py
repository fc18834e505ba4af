"""How the units of one layer react to one scenario."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.documents import number
from pytest_watermark_guard.reports.names import unit_label
from pytest_watermark_guard.statistics.intervals import logit_interval

TIERS = (0.7, 0.8, 0.9, 0.95)
"""Thresholds on d that tables count units at (Bykov et al., 2023)."""


@dataclass(frozen=True)
class SensitiveUnit:
    """One unit that tells marked images from clean ones.

    Attributes
    ----------
    layer, scenario : str
    index : int
        Position in the layer.
    name : str
        The class's name for a logit where it is known, else the index.
    auroc : float
        A: above 0.5 the unit fires on the mark, below it the mark silences the unit.
    differentiability : float
        d = max(A, 1 − A).
    low, high : float
        95 % confidence interval of A.
    """

    layer: str
    scenario: str
    index: int
    name: str
    auroc: float
    differentiability: float
    low: float
    high: float

    @property
    def fires(self) -> bool:
        """Whether the mark makes the unit fire (else it silences it)."""
        return self.auroc >= 0.5

    @property
    def label(self) -> str:
        """Name and index: ``carton [478]``, or ``unit 937`` where there is no name."""
        return unit_label(self.name, self.index)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SensitiveUnit:
        """Read what `dataclasses.asdict` gave."""
        return cls(
            layer=str(data["layer"]),
            scenario=str(data["scenario"]),
            index=int(data["index"]),
            name=str(data["name"]),
            auroc=number(data["auroc"]),
            differentiability=number(data["differentiability"]),
            low=number(data["low"]),
            high=number(data["high"]),
        )


def dead_layers(dead: Mapping[str, int], scores: Iterable[Scores]) -> tuple[str, ...]:
    """Return the layers of which as many units are dead as there are."""
    units = {one.layer: len(one.names) for one in scores}
    return tuple(layer for layer, number in units.items() if dead.get(layer) == number)


@dataclass(frozen=True, eq=False)
class Scores:
    """One layer under one scenario.

    Attributes
    ----------
    layer, scenario : str
    auroc : ndarray of float64, shape [units]
        Exact AUROC of marked (1) against baseline (0) images; ties count one half.
    standard_error : ndarray of float64, shape [units]
        Of `auroc`, images being paired.
    n_images : int
        Number of image pairs.
    names : tuple of str
        One for each unit: the class's name, or the index.
    largest : (float, float) or None
        95 % confidence interval of the largest d, all units taken together; None if unknown.
    n_pictures : int or None
        Number of image pairs, near duplicates being one; None: as many as `n_images`.
    """

    layer: str
    scenario: str
    auroc: npt.NDArray[np.float64]
    standard_error: npt.NDArray[np.float64]
    n_images: int
    names: tuple[str, ...]
    largest: tuple[float, float] | None = None
    n_pictures: int | None = None

    @property
    def n_groups(self) -> int:
        """Number of different pictures, which is what errors and intervals go by."""
        return self.n_images if self.n_pictures is None else self.n_pictures

    @property
    def differentiability(self) -> npt.NDArray[np.float64]:
        """D = max(A, 1 − A), float64, shape [units]."""
        return np.maximum(self.auroc, 1 - self.auroc)

    def interval(self, level: float = 0.95) -> tuple[npt.NDArray[np.float64], ...]:
        """Confidence interval of `auroc`.

        Parameters
        ----------
        level : float, default 0.95

        Returns
        -------
        low, high : ndarray of float64, shape [units]
            For each unit by itself, on the logit scale, from the paired standard error.
        """
        return logit_interval(self.auroc, self.standard_error, self.n_groups, level)

    def ranking(self) -> npt.NDArray[np.intp]:
        """Return unit indices, most differentiable first; equal ones by index."""
        return np.argsort(-self.differentiability, kind="stable")

    def sensitive(self, threshold: float) -> list[SensitiveUnit]:
        """Return the units with d ≥ `threshold`, most differentiable first."""
        d = self.differentiability
        return [self.unit(index) for index in self.ranking() if d[index] >= threshold]

    def count(self, threshold: float) -> int:
        """Count the units with d ≥ `threshold`."""
        return int((self.differentiability >= threshold).sum())

    def unit(self, index: int) -> SensitiveUnit:
        """Return everything about one unit, as plain numbers."""
        low, high = self._interval95
        area = float(self.auroc[index])
        return SensitiveUnit(
            layer=self.layer,
            scenario=self.scenario,
            index=int(index),
            name=self.names[index],
            auroc=area,
            differentiability=max(area, 1 - area),
            low=float(low[index]),
            high=float(high[index]),
        )

    def strongest(self) -> SensitiveUnit:
        """Return the most differentiable unit; of equal ones the first."""
        return self.unit(int(self.differentiability.argmax()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data without the names, which layers share."""
        return {"layer": self.layer, "scenario": self.scenario, **self.numbers()}

    def numbers(self) -> dict[str, list[float | None]]:
        """Return A and its standard error as plain data; None for NaN, which JSON has not."""
        errors = self.standard_error.tolist()
        return {
            "auroc": self.auroc.tolist(),
            "standard_error": [None if math.isnan(error) else error for error in errors],
            "largest": self.largest and list(self.largest),
            "n_pictures": self.n_pictures,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], n_images: int, names: Sequence[str]) -> Scores:
        """Read what `to_dict` gave; `ReportError` unless each name has one score in [0, 1]."""
        scores = cls(
            layer=str(data["layer"]),
            scenario=str(data["scenario"]),
            auroc=np.array(data["auroc"], dtype=np.float64),
            standard_error=np.array(data["standard_error"], dtype=np.float64),
            n_images=n_images,
            names=tuple(map(str, names)),
            largest=_pair(data.get("largest")),
            n_pictures=None if (number := data.get("n_pictures")) is None else int(number),
        )
        where = f"{scores.layer!r} under {scores.scenario!r}"
        shapes = {scores.auroc.shape, scores.standard_error.shape}
        if shapes != {(len(scores.names),)}:
            raise ReportError(f"{where} does not have one score for each unit")
        if not names or not ((scores.auroc >= 0) & (scores.auroc <= 1)).all():
            raise ReportError(f"{where} has scores outside [0, 1]")
        return scores

    @cached_property
    def _interval95(self) -> tuple[npt.NDArray[np.float64], ...]:
        return self.interval(0.95)


def _pair(ends: Any) -> tuple[float, float] | None:
    return None if ends is None else (float(ends[0]), float(ends[1]))
