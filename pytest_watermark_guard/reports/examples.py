"""Which images move a unit most and least under a mark, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shift:
    """An image's name within the baseline, and a unit's activation without and with a mark."""

    identity: str
    before: float
    after: float


@dataclass(frozen=True)
class UnitExamples:
    """The images that move one unit most and least, in the direction in which the mark moves it."""

    layer: str
    scenario: str
    index: int
    most: tuple[Shift, ...]  # the most affected first
    least: tuple[Shift, ...]  # the least affected first


@dataclass(frozen=True)
class PredictionExample:
    """An image whose predicted class a mark changes, and the classes' names."""

    scenario: str
    identity: str
    before: str
    after: str


@dataclass(frozen=True)
class Examples:
    """Images of the worst units, and all that it takes to draw them again."""

    units: tuple[UnitExamples, ...]  # worst first
    images: str | None  # the baseline's folder, or "builtin"; None if others cannot know it
    # The fields of the model's `Preprocessing` that say how images are fitted.
    geometry: Mapping[str, Any]
    marks: tuple[Mapping[str, Any], ...]  # fields of every `Scenario` or `PairedFolder`
    predictions: tuple[PredictionExample, ...] = ()  # at most one for each scenario

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Examples:
        """Read what `dataclasses.asdict` gave."""
        images = data["images"]
        return cls(
            tuple(map(_read_unit, data["units"])),
            None if images is None else str(images),
            dict(data["geometry"]),
            tuple(dict(mark) for mark in data["marks"]),
            tuple(
                PredictionExample(*(str(entry[name]) for name in PredictionExample.__annotations__))
                for entry in data.get("predictions", ())  # the first reports had none
            ),
        )


def _read_unit(data: Mapping[str, Any]) -> UnitExamples:
    most, least = (
        tuple(Shift(str(s["identity"]), float(s["before"]), float(s["after"])) for s in data[which])
        for which in ("most", "least")
    )
    layer, scenario = str(data["layer"]), str(data["scenario"])
    return UnitExamples(layer, scenario, int(data["index"]), most, least)
