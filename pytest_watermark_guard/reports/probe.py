"""What a probe found, as plain data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.class_counts import ClassCounts
from pytest_watermark_guard.reports.examples import Examples
from pytest_watermark_guard.settings import check_threshold
from pytest_watermark_guard.statistics.intervals import logit_interval

FORMAT = "pytest-watermark-guard/report"
FORMAT_VERSION = 1
TIERS = (0.7, 0.8, 0.9, 0.95)
"""Thresholds on d that tables count units at (Bykov et al., 2023)."""


@dataclass(frozen=True)
class SensitiveUnit:
    """One unit that tells marked images from clean ones.

    Attributes
    ----------
    layer, scenario : str
    index : int
        Position in the layer.
    name : str
        The class's name for a logit where it is known, else the index.
    auroc : float
        A: above 0.5 the unit fires on the mark, below it the mark silences the unit.
    differentiability : float
        d = max(A, 1 − A).
    low, high : float
        95 % confidence interval of A.
    """

    layer: str
    scenario: str
    index: int
    name: str
    auroc: float
    differentiability: float
    low: float
    high: float

    @property
    def fires(self) -> bool:
        """Whether the mark makes the unit fire (else it silences it)."""
        return self.auroc >= 0.5

    @property
    def label(self) -> str:
        """Name and index: ``carton [478]``, or ``unit 937`` where there is no name."""
        return (
            f"unit {self.index}" if self.name == str(self.index) else f"{self.name} [{self.index}]"
        )


@dataclass(frozen=True, eq=False)
class Scores:
    """One layer under one scenario.

    Attributes
    ----------
    layer, scenario : str
    auroc : ndarray of float64, shape [units]
        Exact AUROC of marked (1) against baseline (0) images; ties count one half.
    standard_error : ndarray of float64, shape [units]
        Of `auroc`, images being paired.
    n_images : int
        Number of image pairs.
    names : tuple of str
        One for each unit: the class's name, or the index.
    """

    layer: str
    scenario: str
    auroc: npt.NDArray[np.float64]
    standard_error: npt.NDArray[np.float64]
    n_images: int
    names: tuple[str, ...]

    @property
    def differentiability(self) -> npt.NDArray[np.float64]:
        """D = max(A, 1 − A), float64, shape [units]."""
        return np.maximum(self.auroc, 1 - self.auroc)

    def interval(self, level: float = 0.95) -> tuple[npt.NDArray[np.float64], ...]:
        """Confidence interval of `auroc`.

        Parameters
        ----------
        level : float, default 0.95

        Returns
        -------
        low, high : ndarray of float64, shape [units]
            For each unit by itself, on the logit scale, from the paired standard error.
        """
        return logit_interval(self.auroc, self.standard_error, self.n_images, level)

    def ranking(self) -> npt.NDArray[np.intp]:
        """Return unit indices, most differentiable first; equal ones by index."""
        return np.argsort(-self.differentiability, kind="stable")

    def sensitive(self, threshold: float) -> list[SensitiveUnit]:
        """Return the units with d ≥ `threshold`, most differentiable first."""
        d = self.differentiability
        return [self.unit(index) for index in self.ranking() if d[index] >= threshold]

    def count(self, threshold: float) -> int:
        """Count the units with d ≥ `threshold`."""
        return int((self.differentiability >= threshold).sum())

    def unit(self, index: int) -> SensitiveUnit:
        """Return everything about one unit, as plain numbers."""
        low, high = self._interval95
        area = float(self.auroc[index])
        return SensitiveUnit(
            self.layer,
            self.scenario,
            int(index),
            self.names[index],
            area,
            max(area, 1 - area),
            float(low[index]),
            float(high[index]),
        )

    @cached_property
    def _interval95(self) -> tuple[npt.NDArray[np.float64], ...]:
        return self.interval(0.95)


@dataclass(frozen=True)
class Impact:
    """What a scenario does to the model's predictions.

    Attributes
    ----------
    flip_rate : float
        Share of images whose predicted class differs with the mark.
    gains_index, gains_name : int or None, str or None
        The class that more images are predicted as with the mark than without; None if no
        prediction changes.
    gains_share : float
        By how much its share of all predictions grows.
    top1_baseline, top1_marked : float or None
        Top-1 accuracy, where labels are known.
    control_flip_rate : float or None
        The same share with the scrambled mark, where that was probed.
    by_class : ClassCounts or None
        Predictions by class; None in reports of versions that did not count them.
    """

    flip_rate: float
    gains_index: int | None
    gains_name: str | None
    gains_share: float
    top1_baseline: float | None = None
    top1_marked: float | None = None
    control_flip_rate: float | None = None
    by_class: ClassCounts | None = None

    @property
    def flips_beyond_control(self) -> float | None:
        """Share of flips that the text makes and scrambled ink does not; None without control."""
        return None if self.control_flip_rate is None else self.flip_rate - self.control_flip_rate

    @property
    def gains_gap(self) -> float | None:
        """How much more of its own images the class that gains most gets right with the mark.

        None without labels. For "carton" under ``imagenet_w`` it is the Carton Gap of Li et al.
        (2023), as `top1_drop` is their IN-W Gap with its sign turned.
        """
        if self.by_class is None or self.gains_index is None:
            return None
        return self.by_class.top1_gap(self.gains_index)

    @property
    def top1_drop(self) -> float | None:
        """Top-1 accuracy lost to the mark, or None without labels."""
        if self.top1_baseline is None or self.top1_marked is None:
            return None
        return self.top1_baseline - self.top1_marked


class Decision(NamedTuple):
    """A verdict on one layer under one scenario: "sensitive", "clean" or None, and its images."""

    verdict: str | None
    n_images: int


@dataclass(frozen=True)
class EarlyStop:
    """How a gate's probe ended that may stop before the last image.

    Attributes
    ----------
    threshold : float
        The gate's.
    error : float
        Chance of a verdict other than that of all images, for all verdicts of the probe together.
    verdict : {"sensitive", "clean", None}
        None: undecided to the last image, and so decided by the scores themselves.
    n_available : int
        How many images there are.
    each : mapping of (layer, scenario) to Decision
        Where each has a verdict of its own: what it is, None if it was undecided to the last
        image, and how many images it took. Empty: there was one verdict on the whole.
    """

    threshold: float
    error: float
    verdict: str | None
    n_available: int
    each: Mapping[tuple[str, str], Decision] = field(default_factory=dict)

    def of(self, layer: str, scenario: str) -> EarlyStop:
        """Return what it says of one layer under one scenario, else of the whole."""
        own = self.each.get((layer, scenario))
        if own is None:
            return self
        return replace(self, verdict=own.verdict, each={(layer, scenario): own})


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """Everything that one probe of one model found.

    ``report["features", "chinese"]`` gives the `Scores` of one layer under one scenario.

    Attributes
    ----------
    model : str
        The model spec, or the module's class.
    baseline : str
        Which images, and how many.
    n_images : int
        How many of them were used.
    seed : int
        Of the watermarks' draws and the images' selection.
    scores : mapping of (layer, scenario) to Scores
    controls : mapping of (layer, scenario) to Scores
        A of the watermark (1) against its control (0): the same ink at the same place, scrambled.
        Near 0.5 the unit reacts to anything printed over the photo. Empty if not asked for.
    impact : mapping of str to Impact
        By scenario; empty if the logits were not probed.
    preprocessing : str
        How pixels became the model's input, and where that is known from.
    device, precision : str
        What the model ran on.
    notes : tuple of str
        What was assumed, guessed or left out. Read them.
    version : str
        The package's.
    early_stop : EarlyStop or None
        None: all images were asked for.
    weights : str
        Identity of the model's weights below its head, see `models.identity`; empty if unknown.
    examples : Examples or None
        The images that move the worst units most and least; None if not asked for.
    versions : mapping of str to str
        Of Python and the packages that the numbers depend on; empty if unknown.
    """

    model: str
    baseline: str
    n_images: int
    seed: int
    scores: Mapping[tuple[str, str], Scores]
    impact: Mapping[str, Impact] = field(default_factory=dict)
    preprocessing: str = ""
    device: str = ""
    precision: str = ""
    notes: tuple[str, ...] = ()
    version: str = ""
    controls: Mapping[tuple[str, str], Scores] = field(default_factory=dict)
    early_stop: EarlyStop | None = None
    weights: str = ""
    examples: Examples | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def stopped_early(self) -> bool:
        """Whether a gate ended the probe before the last image."""
        return self.early_stop is not None and self.n_images < self.early_stop.n_available

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers probed, in order."""
        return tuple(dict.fromkeys(layer for layer, _ in self.scores))

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The scenarios probed, in order."""
        return tuple(dict.fromkeys(scenario for _, scenario in self.scores))

    def __getitem__(self, key: tuple[str, str]) -> Scores:
        try:
            return self.scores[key]
        except (KeyError, TypeError):
            raise KeyError(
                f"no scores for {key!r}; ask for (layer, scenario) with a layer of "
                f"{', '.join(self.layers)} and a scenario of {', '.join(self.scenarios)}"
            ) from None

    def __iter__(self) -> Iterator[Scores]:
        return iter(self.scores.values())

    def sensitive(self, threshold: float) -> list[SensitiveUnit]:
        """Return the units with d ≥ `threshold` in any layer and scenario, worst first.

        Raises
        ------
        SettingsError
            If `threshold` is not in (0.5, 1].
        """
        check_threshold(threshold)
        units = [unit for scores in self for unit in scores.sensitive(threshold)]
        return sorted(units, key=lambda unit: -unit.differentiability)

    def to_json(self) -> str:
        """Return the report as JSON text; every number survives the round trip exactly."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            "notes": list(self.notes),
            "names": {s.layer: list(s.names) for s in self},
            "scores": [_scores_data(s) for s in self],
            "controls": [_scores_data(s) for s in self.controls.values()],
            "impact": {name: _impact_data(impact) for name, impact in self.impact.items()},
            "early_stop": self.early_stop and _early_stop_data(self.early_stop),
            "weights": self.weights,
            "versions": dict(self.versions),
            "examples": self.examples and self.examples.to_dict(),
        }
        return json.dumps(data, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ProbeReport:
        """Read what `to_json` wrote.

        Raises
        ------
        ReportError
            If it is something else, or of a newer format.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data.get("format") != FORMAT:
                raise ReportError(f"not a probe report: its format is {data.get('format')!r}")
            if data["format_version"] > FORMAT_VERSION:
                raise ReportError(
                    f"report format {data['format_version']} is newer than this version reads "
                    f"({FORMAT_VERSION}); upgrade pytest-watermark-guard"
                )
            scores, controls = (
                {(s["layer"], s["scenario"]): _read_scores(s, data) for s in part}
                # Controls are newer than the format; without scores there is no report.
                for part in (data["scores"], data.get("controls", ()))
            )
            _check_scores([*scores.values(), *controls.values()])
            stop, examples = data.get("early_stop"), data.get("examples")
            return cls(
                **{name: kind(data[name]) for name, kind in _PLAIN_FIELDS.items()},
                scores=scores,
                impact={name: _read_impact(impact) for name, impact in data["impact"].items()},
                notes=tuple(map(str, data["notes"])),
                controls=controls,
                early_stop=stop and _read_early_stop(stop),
                weights=str(data.get("weights", "")),
                examples=examples and Examples.from_dict(examples),
                versions={str(k): str(v) for k, v in data.get("versions", {}).items()},
            )
        except ReportError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ReportError(f"not a probe report: {type(error).__name__}: {error}") from error

    def to_html(self, path: str | Path, threshold: float = 0.95, images: Any = None) -> None:
        """Write the report to one HTML file that opens offline.

        Parameters
        ----------
        path : str or Path
        threshold : float, default 0.95
            Units with d at or above it are shown as sensitive.
        images : optional
            The baseline, as for `probe`: a report of ``probe(..., examples=True)`` then shows the
            images that move the worst units most and least.
        """
        from pytest_watermark_guard import write_html

        check_threshold(threshold)
        write_html(path, [(self, [])], threshold, images=images)

    def save(self, path: str | Path) -> None:
        """Write the report to a JSON file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> ProbeReport:
        """Read a report that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ReportError(f"cannot read report {str(path)!r}: {error}") from error
        return cls.from_json(text)


_PLAIN_FIELDS = {
    "model": str,
    "baseline": str,
    "n_images": int,
    "seed": int,
    "preprocessing": str,
    "device": str,
    "precision": str,
    "version": str,
}


def _scores_data(scores: Scores) -> dict[str, Any]:
    errors = scores.standard_error.tolist()
    return {
        "layer": scores.layer,
        "scenario": scores.scenario,
        "auroc": scores.auroc.tolist(),
        # JSON has no NaN: one image gives no error estimate.
        "standard_error": [None if np.isnan(e) else e for e in errors],
    }


def _read_scores(found: Mapping[str, Any], data: Mapping[str, Any]) -> Scores:
    return Scores(
        str(found["layer"]),
        str(found["scenario"]),
        np.array(found["auroc"], dtype=np.float64),
        np.array(found["standard_error"], dtype=np.float64),
        int(data["n_images"]),
        tuple(map(str, data["names"][found["layer"]])),
    )


def _early_stop_data(early: EarlyStop) -> dict[str, Any]:
    each = [
        {"layer": layer, "scenario": scenario, **decision._asdict()}
        for (layer, scenario), decision in early.each.items()
    ]
    return {**vars(early), "each": each}


def _read_early_stop(found: Mapping[str, Any]) -> EarlyStop:
    each = {
        (str(one["layer"]), str(one["scenario"])): Decision(one["verdict"], int(one["n_images"]))
        # Newer than the format.
        for one in found.get("each", ())
    }
    for verdict in (found["verdict"], *(decision.verdict for decision in each.values())):
        if verdict not in ("sensitive", "clean", None):
            raise ReportError(f"not a probe report: early verdict {verdict!r}")
    return EarlyStop(
        float(found["threshold"]),
        float(found["error"]),
        found["verdict"],
        int(found["n_available"]),
        each,
    )


def _check_scores(found: Iterable[Scores]) -> None:
    for scores in found:
        units = len(scores.names)
        where = f"{scores.layer!r} under {scores.scenario!r}"
        if scores.auroc.shape != (units,) or scores.standard_error.shape != (units,):
            raise ReportError(f"not a probe report: {where} does not have one score for each unit")
        if not units or not ((scores.auroc >= 0) & (scores.auroc <= 1)).all():
            raise ReportError(f"not a probe report: {where} has scores outside [0, 1]")


def _impact_data(impact: Impact) -> dict[str, Any]:
    return {**vars(impact), "by_class": impact.by_class and impact.by_class.to_dict()}


def _read_impact(data: Mapping[str, Any]) -> Impact:
    kinds: dict[str, Callable[[Any], Any]] = {
        "gains_index": int,
        "gains_name": str,
        "by_class": ClassCounts.from_dict,
    }
    values: dict[str, Any] = {
        name: None if value is None else kinds.get(name, float)(value)
        for name, value in data.items()
    }
    return Impact(**values)
