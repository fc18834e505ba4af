"""Which images move a unit most and least under a mark, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Shift:
    """One image and what its mark does to a unit.

    Attributes
    ----------
    identity : str
        The image's name within the baseline.
    before, after : float
        The unit's activation without and with the mark.
    """

    identity: str
    before: float
    after: float


@dataclass(frozen=True)
class UnitExamples:
    """The images that move one unit most and least, in the direction in which the mark moves it.

    Attributes
    ----------
    layer, scenario : str
    index : int
        The unit's position in the layer.
    most, least : tuple of Shift
        The most and the least affected image first.
    """

    layer: str
    scenario: str
    index: int
    most: tuple[Shift, ...]
    least: tuple[Shift, ...]


@dataclass(frozen=True)
class Examples:
    """Images of the worst units, and all that it takes to draw them again.

    Attributes
    ----------
    units : tuple of UnitExamples
        Worst first.
    images : str or None
        The baseline's folder, or ``"builtin"``; None where it has no name that others know.
    geometry : mapping of str to Any
        The fields of the model's `Preprocessing` that say how images are fitted.
    marks : tuple of mapping
        The fields of every `Scenario` or `PairedFolder`.
    """

    units: tuple[UnitExamples, ...]
    images: str | None
    geometry: Mapping[str, Any]
    marks: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Examples:
        """Read what `to_dict` gave.

        Raises
        ------
        ValueError, KeyError, TypeError, AttributeError
            If it is something else.
        """
        images = data["images"]
        return cls(
            tuple(map(_read_unit, data["units"])),
            None if images is None else str(images),
            dict(data["geometry"]),
            tuple(dict(mark) for mark in data["marks"]),
        )


def _read_unit(data: Mapping[str, Any]) -> UnitExamples:
    most, least = (
        tuple(Shift(str(s["identity"]), float(s["before"]), float(s["after"])) for s in data[which])
        for which in ("most", "least")
    )
    layer, scenario = str(data["layer"]), str(data["scenario"])
    return UnitExamples(layer, scenario, int(data["index"]), most, least)
