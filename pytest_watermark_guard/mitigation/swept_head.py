"""One head of a sweep, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_watermark_guard.reports.scores import Scores

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class SweptHead:
    """A head trained on features after one intervention, on the validation images.

    Mappings are by scenario. Flips are the share of images whose predicted class the mark, or its
    scrambled control, changes; None where there is no control.
    """

    alpha: float | None  # share of the features that is masked; None for an erasure
    masked: int  # units
    accuracy: float
    accuracy_interval: Interval  # Wilson's, 95 %
    change: float  # of the accuracy, against the head without a mask
    change_interval: Interval  # 95 %, images being paired
    scores: Mapping[str, Scores]  # of the head's outputs, with marks that no training image had
    flips: Mapping[str, float | None]
    control_flips: Mapping[str, float | None]

    @property
    def largest_d(self) -> float:
        """Over all outputs and scenarios."""
        return max(self.d(scenario) for scenario in self.scores)

    @property
    def costs(self) -> bool:
        """Whether accuracy is lost, and more than chance would have it."""
        return self.change_interval[1] < 0

    def d(self, scenario: str) -> float:
        """Return the largest d of the outputs under one scenario."""
        return float(self.scores[scenario].differentiability.max())

    def flips_beyond_control(self, scenario: str) -> float | None:
        """Return the share of flips that the text makes and scrambled ink does not."""
        flips, control = self.flips[scenario], self.control_flips[scenario]
        return None if flips is None or control is None else flips - control

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            **vars(self),
            "scores": {name: scores.numbers() for name, scores in self.scores.items()},
        }

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], classes: tuple[str, ...], n_images: int
    ) -> SweptHead:
        """Read what `to_dict` gave, with the classes and validation images of its sweep."""
        scores = {
            str(name): Scores.from_dict(
                {"layer": "logits", "scenario": name, **numbers}, n_images, classes
            )
            for name, numbers in data["scores"].items()
        }
        return cls(
            alpha=None if data["alpha"] is None else float(data["alpha"]),
            masked=int(data["masked"]),
            accuracy=float(data["accuracy"]),
            accuracy_interval=_interval(data["accuracy_interval"]),
            change=float(data["change"]),
            change_interval=_interval(data["change_interval"]),
            scores=scores,
            flips=dict(data["flips"]),
            control_flips=dict(data["control_flips"]),
        )


def _interval(bounds: Sequence[Any]) -> Interval:
    low, high = map(float, bounds)
    return low, high
