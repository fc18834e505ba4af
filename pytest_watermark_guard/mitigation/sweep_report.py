"""What a sweep found, as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.errors import MaskError
from pytest_watermark_guard.mitigation.choice import Choice
from pytest_watermark_guard.mitigation.erasure import FeatureErasure
from pytest_watermark_guard.mitigation.mask import FeatureMask
from pytest_watermark_guard.mitigation.reaudit import Change
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.reports.documents import DocumentFormat, number
from pytest_watermark_guard.reports.drawing import Style, rendered, table
from pytest_watermark_guard.reports.figure import new_figure, save_figure
from pytest_watermark_guard.reports.text import count, listed, printable

FORMAT = DocumentFormat("sweep", "sweep")


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

    def table(self, width: int = 80, ascii_only: bool = False) -> str:
        """Return the sweep as text for a terminal."""
        style = Style(width, ascii_only)
        return rendered(_parts(self, style), style)

    def plot(self, path: str | Path) -> None:
        """Draw the sweep into a picture (PNG, PDF or SVG), as Bykov et al. (2023), figure 4.

        Raises
        ------
        SettingsError
            If matplotlib is missing.
        """
        _draw(self, Path(path))

    def save(self, path: str | Path) -> None:
        """Write the sweep to a JSON file."""
        data = {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: list(getattr(self, name)) for name in _LISTS},
            "choosing": [head.to_dict() for head in self.choosing],
            "heads": [head.to_dict() for head in self.heads],
            "erased": self.erased and self.erased.to_dict(),
            "erasure": self.erasure and self.erasure.to_dict(),
        }
        FORMAT.write(path, data)

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
    yield Text()
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
    yield Text()
    yield table(
        style,
        "Largest d of the outputs",
        ("alpha", "largest", "95 % interval", *map(printable, scenarios)),
        [_d_row(head, scenarios) for head in heads],
        words=(0,),
        red=[not choice.passes(head) for head in heads],
    )
    yield Text()
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


def _called(head: SweptHead) -> str:
    return "erasure" if head.alpha is None else f"{head.alpha:g}"


def _accuracy_row(head: SweptHead) -> tuple[str, ...]:
    low, high = head.accuracy_interval
    least, most = head.change_interval
    return (
        _called(head),
        "-" if head.alpha is None else str(head.masked),
        f"{head.accuracy:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{head.change:+.3f}",
        f"{least:+.3f} to {most:+.3f}",
    )


def _d_row(head: SweptHead, scenarios: list[str]) -> tuple[str, ...]:
    low, high = head.d_interval
    return (
        _called(head),
        f"{head.largest_d:.3f}",
        f"{low:.3f}-{high:.3f}",
        *(f"{head.d(name):.3f}" for name in scenarios),
    )


def _spread_row(head: SweptHead, scenario: str) -> tuple[str, ...]:
    areas = sorted(head.scores[scenario].auroc.tolist())
    quantiles = (areas[round(share * (len(areas) - 1))] for share in (0, 0.05, 0.5, 0.95, 1))
    flips, beyond = head.flips[scenario], head.flips_beyond_control(scenario)
    return (
        _called(head),
        *(f"{area:.3f}" for area in quantiles),
        "-" if flips is None else f"{flips:.1%}",
        "-" if beyond is None else f"{beyond:+.1%}",
    )


_ACCURACY, _D, _SPREAD = "#2171b5", "#cb181d", "#6baed6"


def _draw(sweep: SweepReport, path: Path) -> None:
    """Draw accuracy and largest d against alpha, and the distribution of A, erasure beside them."""
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    heads = _all_heads(sweep)
    scenario = sweep.scenarios[0]
    _draw_trade(left, sweep, heads, scenario)
    _draw_spread(right, heads, scenario)
    for axis in (left, right):
        axis.set_xticks(range(len(heads)), [_called(head) for head in heads], fontsize=8)
        axis.set_xlabel("share of the features that is masked")
        axis.spines[["top"]].set_visible(False)
    save_figure(figure, path)


def _draw_trade(axis: Any, sweep: SweepReport, heads: list[SweptHead], scenario: str) -> None:
    swept = np.arange(len(sweep.heads))
    places = np.arange(len(heads))
    accuracy = np.array([head.accuracy for head in heads])
    bounds = np.abs(np.array([head.accuracy_interval for head in heads]).T - accuracy)
    axis.errorbar(places, accuracy, bounds, fmt="o", color=_ACCURACY, markersize=4, capsize=2)
    axis.plot(swept, accuracy[swept], color=_ACCURACY, linewidth=1)
    axis.set_ylabel("accuracy, with 95 % interval", color=_ACCURACY)
    other = axis.twinx()
    d = np.array([head.d(scenario) for head in heads])
    bounds = np.abs(np.array([head.interval(scenario) for head in heads]).T - d)
    other.errorbar(places, d, bounds, fmt="s", color=_D, markersize=4, capsize=2)
    other.plot(swept, d[swept], color=_D, linewidth=1)
    other.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    other.set_ylim(0.48, max(0.8, float((d + bounds[1]).max()) + 0.03))
    other.set_ylabel(f"largest d of an output under {scenario}, with 95 % interval", color=_D)
    other.spines[["top"]].set_visible(False)
    axis.set_title("What it costs, and what it brings", fontsize=10)


def _draw_spread(axis: Any, heads: list[SweptHead], scenario: str) -> None:
    areas = [head.scores[scenario].auroc for head in heads]
    axis.boxplot(
        areas,
        positions=range(len(heads)),
        widths=0.55,
        whis=(5, 95),
        patch_artist=True,
        boxprops={"facecolor": _SPREAD, "alpha": 0.6},
        medianprops={"color": "black"},
        flierprops={"marker": ".", "markersize": 3},
    )
    axis.axhline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axis.set_ylabel(f"A of the outputs under {scenario}")
    axis.set_title("All outputs (box: half of them, whiskers: 90 %)", fontsize=10)
