"""What was taken out of a test's model, as plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Fall:
    """The largest d of the features under one scenario, without and with the mask.

    After an erasure it is measured on images held out.
    """

    scenario: str
    before: float
    after: float


@dataclass(frozen=True)
class Masked:
    """What was taken out of a test's model, as plain data."""

    test: str  # node id
    fixture: str
    model: str
    where: str  # where in the model its features are changed
    method: str  # "mask" or "erase"
    units: tuple[int, ...]  # features that are zero; empty for an erasure
    directions: int  # that an erasure takes out; 0 for a mask
    width: int  # how many features there are
    falls: tuple[Fall, ...]  # one for each scenario
    description: str  # the mask's own: on what evidence

    def to_json(self) -> str:
        """Return text that crosses process borders."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Masked:
        """Read what `to_json` wrote."""
        data = json.loads(text)
        falls = tuple(Fall(**fall) for fall in data["falls"])
        return cls(**{**data, "units": tuple(data["units"]), "falls": falls})
