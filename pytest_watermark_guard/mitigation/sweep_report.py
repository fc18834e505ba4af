"""What a sweep found, as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.mitigation.choice import Choice
from pytest_watermark_guard.mitigation.erasure import FeatureErasure
from pytest_watermark_guard.mitigation.mask import FeatureMask
from pytest_watermark_guard.mitigation.reaudit import Change
from pytest_watermark_guard.mitigation.sweep_figure import draw_sweep
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.reports.documents import DocumentFormat, number
from pytest_watermark_guard.reports.drawing import Style, table
from pytest_watermark_guard.reports.report import Report, Row
from pytest_watermark_guard.reports.text import count, listed, printable

FORMAT = DocumentFormat("sweep", "sweep")


@dataclass(frozen=True, eq=False, repr=False)
class SweepReport(Report):
    """What a sweep found.

    Attributes
    ----------
    model : str
    scenarios : tuple of str
        By which the units were ranked, and which were erased.
    threshold : float
        The gate's on d.
    margin : float
        Accuracy that may be lost.
    seed : int
        Of the training images' marks, and of the split of the validation images, whose marks have
        the next one's.
    n_train, n_validation : int
        Numbers of images.
    classes : tuple of str
    penalty : float
        Of the heads, see `models.linear_probe`.
    ranking : tuple of int
        Feature units, most differentiable first.
    weights : str
        Identity of the backbone.
    choosing, heads : tuple of SweptHead
        One for each alpha, ascending; the first without a mask. `choosing` on the half of the
        validation images that chooses, `heads` on the other half.
    erased : SweptHead or None
        After erasure, on the same half as `heads`.
    erasure : FeatureErasure or None
    notes : tuple of str
        What was assumed or left out. Read them.
    """

    model: str
    scenarios: tuple[str, ...]
    threshold: float
    margin: float
    seed: int
    n_train: int
    n_validation: int
    classes: tuple[str, ...]
    penalty: float
    ranking: tuple[int, ...]
    weights: str
    choosing: tuple[SweptHead, ...]
    heads: tuple[SweptHead, ...]
    erased: SweptHead | None = None
    erasure: FeatureErasure | None = None
    notes: tuple[str, ...] = ()

    @property
    def recommended(self) -> SweptHead | None:
        """The share that one half chose and the other bears out, see `Choice`; None without one."""
        return self._choice.recommended

    @property
    def _choice(self) -> Choice:
        return Choice(self.choosing, self.heads, self.threshold, self.margin)

    def mask(self, alpha: float) -> FeatureMask:
        """Return the mask of one of the alphas.

        Raises
        ------
        MaskError
            If the sweep has no such alpha.
        """
        head = next((head for head in self.heads if head.alpha == alpha), None)
        if head is None:
            known = ", ".join(f"{head.alpha:g}" for head in self.heads)
            raise MaskError(f"alpha {alpha!r} was not swept; known are {known}")
        return FeatureMask(
            self.ranking[: head.masked],
            len(self.ranking),
            self.weights,
            f"{head.masked} of {len(self.ranking)} features of {self.model}: the {alpha:g} most "
            f"differentiable under {', '.join(self.scenarios)} on {self.n_train} training images",
        )

    def moved(self, head: SweptHead) -> tuple[Change, ...]:
        """Return where a head reacts more than the one without a mask, see `Change.rose`."""
        changes = (
            Change(self.heads[0].scores[name].strongest(), scores.strongest(), self.threshold)
            for name, scores in head.scores.items()
        )
        return tuple(change for change in changes if change.rose)

    def advice(self) -> str:
        """Say what to do, and on what grounds."""
        choice, text = self._choice, self._choice.advice()
        best, after = choice.recommended, self.erased
        if after is not None and (best is None or best.alpha):
            if choice.holds(after):
                text += (
                    f" Erasure keeps both bounds: on the same images d is {after.largest_d:.3f} at "
                    f"most ({after.d_interval[1]:.3f} by its interval), and accuracy changes by "
                    f"{100 * after.change:+.1f} points ({100 * after.change_interval[0]:+.1f})."
                )
            else:
                text += f" Erasure is not shown to keep both bounds: {choice.shortfall(after)}"
        worse = [
            f"{listed(c.scenario for c in moved)} at alpha {head.alpha:g}"
            for head in self.heads
            if (moved := self.moved(head))
        ]
        if worse:
            text += f" The mask moved the problem: outputs react more to {'; '.join(worse)}."
        return text

    def _lines(self) -> Iterator[str]:
        yield f"heads on {self.model}, {count(len(self.heads), 'share')} of masked features"
        yield from textwrap.wrap(self.advice(), 90)

    def _rows(self) -> Iterator[Row]:
        for head in _all_heads(self):
            (least, most), (low, high) = head.change_interval, head.d_interval
            yield {
                "head": head.name,
                "masked": head.masked,
                "accuracy": head.accuracy,
                "change": head.change,
                "change low": least,
                "change high": most,
                "largest d": head.largest_d,
                "d low": low,
                "d high": high,
            }

    def _parts(self, style: Style) -> Iterator[RenderableType]:
        return _parts(self, style)

    def _figure(self) -> Any:
        return draw_sweep(
            self.model, _all_heads(self), self.scenarios[0], self.threshold, self.margin
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, the erasure's matrices too."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: list(getattr(self, name)) for name in _LISTS},
            "choosing": [head.to_dict() for head in self.choosing],
            "heads": [head.to_dict() for head in self.heads],
            "erased": self.erased and self.erased.to_dict(),
            "erasure": self.erasure and self.erasure.to_dict(),
        }

    def save(self, path: str | Path) -> None:
        """Write the sweep to a JSON file."""
        FORMAT.write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SweepReport:
        """Read a sweep that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with FORMAT.reading_json(path) as data:
            erased, erasure = data["erased"], data["erasure"]
            plain: dict[str, Any] = {name: kind(data[name]) for name, kind in _PLAIN.items()}
            plain |= {name: tuple(map(kind, data[name])) for name, kind in _LISTS.items()}
            first = plain["n_validation"] // 2
            chooser, head_of = (
                partial(SweptHead.from_dict, classes=plain["classes"], n_images=images)
                for images in (first, plain["n_validation"] - first)
            )
            return cls(
                **plain,
                choosing=tuple(map(chooser, data["choosing"])),
                heads=tuple(map(head_of, data["heads"])),
                erased=erased and head_of(erased),
                erasure=erasure and FeatureErasure.from_dict(erasure),
            )


_PLAIN: dict[str, Any] = {
    "model": str,
    "threshold": number,
    "margin": number,
    "seed": int,
    "n_train": int,
    "n_validation": int,
    "penalty": number,
    "weights": str,
}
_LISTS: dict[str, Any] = {"scenarios": str, "classes": str, "ranking": int, "notes": str}


def _parts(sweep: SweepReport, style: Style) -> Iterator[RenderableType]:
    yield Text(f"Heads on {printable(sweep.model)}", style="bold")
    masked = listed(map(printable, sweep.scenarios))
    yield Text(
        f"{count(sweep.n_train, 'training image')}, "
        f"{count(len(sweep.classes), 'class').replace('classs', 'classes')}; features ranked by "
        f"{masked}. Of {sweep.n_validation:,} validation images, split at random with seed "
        f"{sweep.seed}, {sweep.choosing[0].n_images:,} chose; all figures are of the "
        f"{sweep.heads[0].n_images:,} others."
    )
    for note in sweep.notes:
        yield Text(f"Note: {printable(note)}.", style="yellow")
    heads = _all_heads(sweep)
    scenarios = list(sweep.heads[0].scores)
    choice = sweep._choice
    yield table(
        style,
        "Accuracy",
        ("alpha", "units", "accuracy", "95 % interval", "change", "95 % interval"),
        [_accuracy_row(head) for head in heads],
        words=(0,),
        red=[not choice.keeps_accuracy(head) for head in heads],
    )
    yield table(
        style,
        "Largest d of the outputs",
        ("alpha", "largest", "95 % interval", *map(printable, scenarios)),
        [_d_row(head, scenarios) for head in heads],
        words=(0,),
        red=[not choice.passes(head) for head in heads],
    )
    first = sweep.scenarios[0]
    yield table(
        style,
        f"A of the outputs under {printable(first)}, and predictions that change",
        ("alpha", "lowest", "5 %", "median", "95 %", "highest", "flips", "beyond control"),
        [_spread_row(head, first) for head in heads],
        words=(0,),
    )
    yield Text("\n".join(textwrap.wrap(printable(sweep.advice()), style.width - 1)))


def _all_heads(sweep: SweepReport) -> list[SweptHead]:
    return [head for head in (*sweep.heads, sweep.erased) if head is not None]


def _accuracy_row(head: SweptHead) -> tuple[str, ...]:
    low, high = head.accuracy_interval
    least, most = head.change_interval
    return (
        head.name,
        "-" if head.alpha is None else str(head.masked),
        f"{head.accuracy:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{head.change:+.3f}",
        f"{least:+.3f} to {most:+.3f}",
    )


def _d_row(head: SweptHead, scenarios: list[str]) -> tuple[str, ...]:
    low, high = head.d_interval
    return (
        head.name,
        f"{head.largest_d:.3f}",
        f"{low:.3f}-{high:.3f}",
        *(f"{head.d(name):.3f}" for name in scenarios),
    )


def _spread_row(head: SweptHead, scenario: str) -> tuple[str, ...]:
    areas = sorted(head.scores[scenario].auroc.tolist())
    quantiles = (areas[round(share * (len(areas) - 1))] for share in (0, 0.05, 0.5, 0.95, 1))
    flips, beyond = head.flips[scenario], head.flips_beyond_control(scenario)
    return (
        head.name,
        *(f"{area:.3f}" for area in quantiles),
        "-" if flips is None else f"{flips:.1%}",
        "-" if beyond is None else f"{beyond:+.1%}",
    )
