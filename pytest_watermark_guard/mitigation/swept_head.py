"""One head of a sweep, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_watermark_guard.reports.documents import number
from pytest_watermark_guard.reports.scores import Scores

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class SweptHead:
    """A head trained on features after one intervention, on one half of the validation images.

    Mappings are by scenario. Flips are the share of images whose predicted class the mark, or its
    scrambled control, changes; None where there is no control.
    """

    alpha: float | None  # share of the features that is masked; None for an erasure
    masked: int  # units
    accuracy: float
    accuracy_interval: Interval  # Wilson's, 95 %
    change: float  # of the accuracy, against the head without a mask
    change_interval: Interval  # Tango's, 95 %, images being paired
    scores: Mapping[str, Scores]  # of the head's outputs, with marks that no training image had
    flips: Mapping[str, float | None]
    control_flips: Mapping[str, float | None]

    @property
    def name(self) -> str:
        """What it is called in tables and figures: by the share that is masked."""
        return "erasure" if self.alpha is None else f"{self.alpha:g}"

    @property
    def largest_d(self) -> float:
        """Over all outputs and scenarios."""
        return max(self.d(scenario) for scenario in self.scores)

    @property
    def d_interval(self) -> Interval:
        """95 % interval of the largest d: see `interval`."""
        bounds = [self.interval(scenario) for scenario in self.scores]
        worst = max(self.scores, key=self.d)
        return self.interval(worst)[0], max(high for _, high in bounds)

    @property
    def n_images(self) -> int:
        """Number of images that it was judged on."""
        return next(iter(self.scores.values())).n_images

    def d(self, scenario: str) -> float:
        """Return the largest d of the outputs under one scenario."""
        return float(self.scores[scenario].differentiability.max())

    def interval(self, scenario: str) -> Interval:
        """Return a 95 % interval for it: up to the highest bound on d that any output has.

        That may be another output's than the one with the largest d. The lower end is that output's
        own.
        """
        scores = self.scores[scenario]
        low, high = scores.interval(0.95)
        place = int(scores.differentiability.argmax())
        fires = scores.auroc[place] >= 0.5
        return float(low[place] if fires else 1 - high[place]), float(
            max(high.max(), 1 - low.min())
        )

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
            alpha=None if data["alpha"] is None else number(data["alpha"]),
            masked=int(data["masked"]),
            accuracy=number(data["accuracy"]),
            accuracy_interval=_interval(data["accuracy_interval"]),
            change=number(data["change"]),
            change_interval=_interval(data["change_interval"]),
            scores=scores,
            flips=dict(data["flips"]),
            control_flips=dict(data["control_flips"]),
        )


def _interval(bounds: Sequence[Any]) -> Interval:
    low, high = map(number, bounds)
    return low, high
