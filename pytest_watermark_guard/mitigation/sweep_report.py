"""What a sweep found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pytest_watermark_guard.documents import read_document, write_document
from pytest_watermark_guard.errors import MaskError, ReportError
from pytest_watermark_guard.mitigation.erasure import FeatureErasure
from pytest_watermark_guard.mitigation.mask import FeatureMask
from pytest_watermark_guard.mitigation.reaudit import Change
from pytest_watermark_guard.report import Scores
from pytest_watermark_guard.reporting.text import listed

KIND = "sweep"

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


@dataclass(frozen=True, eq=False)
class SweepReport:
    """What a sweep found.

    Attributes
    ----------
    model : str
    scenarios : tuple of str
        By which the units were ranked, and which were erased.
    threshold : float
        The gate's on d.
    seed : int
        Of the training images' marks; the validation images have the next one's.
    n_train, n_validation : int
        Numbers of images.
    classes : tuple of str
    penalty : float
        Of the heads, see `mitigation.heads`.
    ranking : tuple of int
        Feature units, most differentiable first.
    weights : str
        Identity of the backbone.
    heads : tuple of SweptHead
        One for each alpha, ascending; the first without a mask.
    erased : SweptHead or None
        After erasure.
    erasure : FeatureErasure or None
    notes : tuple of str
        What was assumed or left out. Read them.
    """

    model: str
    scenarios: tuple[str, ...]
    threshold: float
    seed: int
    n_train: int
    n_validation: int
    classes: tuple[str, ...]
    penalty: float
    ranking: tuple[int, ...]
    weights: str
    heads: tuple[SweptHead, ...]
    erased: SweptHead | None = None
    erasure: FeatureErasure | None = None
    notes: tuple[str, ...] = ()

    @property
    def recommended(self) -> SweptHead | None:
        """The smallest alpha under the gate's threshold at no significant loss of accuracy."""
        fit = (h for h in self.heads if h.largest_d < self.threshold and not h.costs)
        return next(fit, None)

    def mask(self, alpha: float) -> FeatureMask:
        """Return the mask of one of the alphas.

        Raises
        ------
        MaskError
            If the sweep has no such alpha.
        """
        found = next((head for head in self.heads if head.alpha == alpha), None)
        if found is None:
            known = ", ".join(f"{head.alpha:g}" for head in self.heads)
            raise MaskError(f"alpha {alpha!r} was not swept; known are {known}")
        return FeatureMask(
            self.ranking[: found.masked],
            len(self.ranking),
            self.weights,
            f"{found.masked} of {len(self.ranking)} features of {self.model}: the {alpha:g} most "
            f"differentiable under {', '.join(self.scenarios)} on {self.n_train} training images",
        )

    def moved(self, head: SweptHead) -> tuple[Change, ...]:
        """Return where a head reacts more than the one without a mask, see `Change.rose`."""
        changes = (
            Change(_worst(self.heads[0].scores[name]), _worst(scores), self.threshold)
            for name, scores in head.scores.items()
        )
        return tuple(change for change in changes if change.rose)

    def advice(self) -> str:
        """Say in a sentence or two what to do."""
        best = self.recommended
        if best is None:
            text = (
                f"No alpha brings every output under d = {self.threshold:g} without a significant "
                "loss of accuracy."
            )
        elif best.alpha == 0:
            text = f"Without a mask every output is under d = {self.threshold:g} already."
        else:
            text = (
                f"Mask {best.alpha:g} of the features: the smallest share that brings every output "
                f"under d = {self.threshold:g}, at no significant loss of accuracy."
            )
        if self.erased is not None and (best is None or best.alpha):
            verb = "would, too" if not self.erased.costs else "would not do without a loss"
            if self.erased.largest_d >= self.threshold:
                verb = "would not do"
            text += f" Erasure {verb} (largest d {self.erased.largest_d:.3f})."
        worse = [
            f"{listed(c.scenario for c in moved)} at alpha {head.alpha:g}"
            for head in self.heads
            if (moved := self.moved(head))
        ]
        if worse:
            text += f" The mask moved the problem: outputs react more to {'; '.join(worse)}."
        return text

    def table(self, width: int = 80, ascii_only: bool = False) -> str:
        """Return the sweep as text for a terminal."""
        from pytest_watermark_guard.reporting.sweep_table import render_sweep

        return render_sweep(self, width=width, ascii_only=ascii_only)

    def plot(self, path: str | Path) -> None:
        """Draw the sweep into a picture (PNG, PDF or SVG), as Bykov et al. (2023), figure 4.

        Raises
        ------
        SettingsError
            If matplotlib is missing.
        """
        from pytest_watermark_guard.reporting.sweep_figure import draw_sweep

        draw_sweep(self, Path(path))

    def save(self, path: str | Path) -> None:
        """Write the sweep to a JSON file."""
        data = {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: list(getattr(self, name)) for name in _LISTS},
            "heads": [_head_data(head) for head in self.heads],
            "erased": self.erased and _head_data(self.erased),
            "erasure": self.erasure and self.erasure.to_dict(),
        }
        write_document(path, KIND, data)

    @classmethod
    def load(cls, path: str | Path) -> SweepReport:
        """Read a sweep that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with read_document(path, KIND) as data:
            classes = tuple(map(str, data["classes"]))
            erased, erasure = data["erased"], data["erasure"]
            plain: dict[str, Any] = {name: kind(data[name]) for name, kind in _PLAIN.items()}
            plain |= {name: tuple(map(kind, data[name])) for name, kind in _LISTS.items()}
            return cls(
                **plain,
                heads=tuple(_read_head(head, classes, data) for head in data["heads"]),
                erased=erased and _read_head(erased, classes, data),
                erasure=erasure and FeatureErasure.from_dict(erasure),
            )


_PLAIN: dict[str, Any] = {
    "model": str,
    "threshold": float,
    "seed": int,
    "n_train": int,
    "n_validation": int,
    "penalty": float,
    "weights": str,
}
_LISTS: dict[str, Any] = {"scenarios": str, "classes": str, "ranking": int, "notes": str}
_NUMBERS = ("alpha", "masked", "accuracy", "change")
_INTERVALS = ("accuracy_interval", "change_interval")
_BY_SCENARIO = ("flips", "control_flips")


def _worst(scores: Scores) -> Any:
    return scores.unit(scores.ranking()[0])


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
