"""What was taken out of a test's model, as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fall:
    """The largest d of the features under one scenario.

    Attributes
    ----------
    scenario : str
    before, after : float
        Without and with the mask, on the same images.
    """

    scenario: str
    before: float
    after: float


@dataclass(frozen=True)
class Masked:
    """What was taken out of a test's model, as plain data.

    Attributes
    ----------
    test : str
        Node id.
    fixture, model : str
        Where the model came from, and what it is.
    where : str
        Where in the model its features are changed.
    method : {"mask", "erase"}
    units : tuple of int
        The features that are zero; empty for an erasure.
    directions : int
        How many directions an erasure takes out; 0 for a mask.
    width : int
        How many features there are.
    falls : tuple of Fall
        One for each scenario.
    description : str
        The mask's own: on what evidence.
    """

    test: str
    fixture: str
    model: str
    where: str
    method: str
    units: tuple[int, ...]
    directions: int
    width: int
    falls: tuple[Fall, ...]
    description: str

    def to_json(self) -> str:
        """Return text that crosses process borders."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str) -> Masked:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        falls = tuple(Fall(**fall) for fall in data["falls"])
        return cls(**{**data, "units": tuple(data["units"]), "falls": falls})
