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

    Attributes
    ----------
    alpha : float or None
        Share of the features that is masked; None for an erasure.
    masked : int
        How many units that is.
    accuracy : float
    accuracy_interval : (float, float)
        Wilson's, 95 %.
    change : float
        Of the accuracy, against the head without a mask, on the same images.
    change_interval : (float, float)
        95 %, images being paired.
    scores : mapping of str to Scores
        By scenario: the head's outputs, with marks that no training image had.
    flips, control_flips : mapping of str to (float or None)
        By scenario: share of images whose predicted class the mark changes, and its scrambled
        control; None where there is none.
    """

    alpha: float | None
    masked: int
    accuracy: float
    accuracy_interval: Interval
    change: float
    change_interval: Interval
    scores: Mapping[str, Scores]
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
        """Read what `to_dict` gave.

        Parameters
        ----------
        data : mapping
        classes : tuple of str
            Of the sweep.
        n_images : int
            Its number of validation images.

        Raises
        ------
        ReportError
            If there is not one score in [0, 1] for each class.
        ValueError, KeyError, TypeError, AttributeError
            If it is something else.
        """
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
