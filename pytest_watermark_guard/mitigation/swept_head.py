"""One head of a sweep, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.probe import Scores

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


_NUMBERS = ("alpha", "masked", "accuracy", "change")
_INTERVALS = ("accuracy_interval", "change_interval")
_BY_SCENARIO = ("flips", "control_flips")


def _head_data(head: SweptHead) -> dict[str, Any]:
    return {
        **{name: getattr(head, name) for name in _NUMBERS},
        **{name: list(getattr(head, name)) for name in _INTERVALS},
        **{name: dict(getattr(head, name)) for name in _BY_SCENARIO},
        "scores": {
            name: {
                "auroc": scores.auroc.tolist(),
                # JSON has no NaN: one image gives no error estimate.
                "standard_error": [None if np.isnan(e) else e for e in scores.standard_error],
            }
            for name, scores in head.scores.items()
        },
    }


def _read_head(
    data: Mapping[str, Any], classes: tuple[str, ...], report: Mapping[str, Any]
) -> SweptHead:
    scores = {}
    for name, found in data["scores"].items():
        area, error = (np.array(found[k], dtype=np.float64) for k in ("auroc", "standard_error"))
        if {area.shape, error.shape} != {(len(classes),)}:
            raise ReportError(f"not a sweep: {name!r} does not have one score for each class")
        n = int(report["n_validation"])
        scores[str(name)] = Scores("logits", str(name), area, error, n, classes)
    rest: dict[str, Any] = {name: tuple(map(float, data[name])) for name in _INTERVALS}
    rest |= {name: dict(data[name]) for name in _BY_SCENARIO}
    return SweptHead(
        alpha=None if data["alpha"] is None else float(data["alpha"]),
        masked=int(data["masked"]),
        accuracy=float(data["accuracy"]),
        change=float(data["change"]),
        scores=scores,
        **rest,
    )
