"""Example images, drawn again from the names that reports give: by image, with what it moves."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from pytest_watermark_guard.errors import ImagesError, WatermarkGuardError
from pytest_watermark_guard.images.baseline import Baseline, open_baseline
from pytest_watermark_guard.images.batches import ProbingBatches
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.reports.examples import Examples, PredictionExample, UnitExamples
from pytest_watermark_guard.reports.html.view import Model
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, PairedFolder, Scenario

UNITS = 8  # on one page
_SIDE, _LARGE = 168, 280  # pixels
_QUALITY = 72
# A report may have been changed, and describe units or marks that are not there.
_CANNOT_DRAW = (WatermarkGuardError, TypeError, ValueError, KeyError, IndexError)


class Effect(NamedTuple):
    """What the mark on an image does to one unit."""

    unit: SensitiveUnit
    before: float
    after: float


class Pair(NamedTuple):
    """One image without and with its mark, as ``data:`` URIs, and what the mark does."""

    identity: str
    scenario: str
    clean: str
    marked: str
    width: int
    height: int
    effects: tuple[Effect, ...]  # classes first
    change: PredictionExample | None  # of the predicted class, where it is known to change


class Gallery(NamedTuple):
    """The images of one model."""

    model: str
    most: tuple[Pair, ...]  # that the mark moves most
    least: tuple[Pair, ...]
    problem: str  # why images could not be drawn; empty if all were


class Drawer:
    """Draws images of reports again; a baseline is opened once.

    Without `images`, `by_name` opens what each report names: only for reports that are trusted,
    since images of a folder of their choice are put on the page.
    """

    def __init__(self, images: Any = None, by_name: bool = False) -> None:
        self._images = images
        self._by_name = by_name
        self._opened: dict[str, tuple[Baseline, Mapping[str, int]]] = {}

    def galleries(self, models: Sequence[Model]) -> list[Gallery]:
        """Draw the images of each model's worst units; one that cannot be drawn says why."""
        each = max(2, UNITS // max(1, len(models)))
        chosen, undrawn = [], []
        for model in models:
            try:
                chosen.append((model, _worst(model.judged.report, each)))
            except _CANNOT_DRAW as error:
                undrawn.append(Gallery(model.name, (), (), _problem(error)))
        best = sorted((-unit.differentiability for _, units in chosen for unit, _ in units))[:UNITS]
        least = -best[-1] if best else 1.0
        shown = [
            (model, [pair for pair in units if pair[0].differentiability >= least])
            for model, units in chosen
        ]
        return undrawn + [self._gallery(model, units) for model, units in shown if units]

    def leading(self, model: Model) -> tuple[Pair | None, str]:
        """Draw, large, the image that says most of a model: one of another class with the mark.

        None where there is none, or it cannot be drawn; then with the reason.
        """
        report, unit = model.judged.report, model.telling
        if report.examples is None:
            return None, ""
        changes = [c for c in report.examples.predictions if c.scenario == unit.scenario]
        images = [change.identity for change in changes]
        images += [
            shift.identity
            for shown in report.examples.units
            if (shown.layer, shown.scenario, shown.index) == (unit.layer, unit.scenario, unit.index)
            for shift in shown.most
        ]
        if not images:
            return None, ""
        try:
            (pair,) = self._draw(report, unit.scenario, {image: [] for image in images[:1]}, _LARGE)
        except _CANNOT_DRAW as error:
            return None, _problem(error)
        return pair, ""

    def _gallery(
        self, model: Model, units: Sequence[tuple[SensitiveUnit, UnitExamples]]
    ) -> Gallery:
        report = model.judged.report
        try:
            most, least = (self._pairs(report, units, which) for which in ("most", "least"))
        except _CANNOT_DRAW as error:
            return Gallery(model.name, (), (), _problem(error))
        return Gallery(model.name, most, least, "")

    def _pairs(
        self,
        report: ProbeReport,
        units: Sequence[tuple[SensitiveUnit, UnitExamples]],
        which: str,
    ) -> tuple[Pair, ...]:
        """Draw each image once for each scenario, those that move most units first."""
        effects: dict[str, dict[str, list[Effect]]] = {}
        for unit, shifts in units:
            for shift in getattr(shifts, which):
                images = effects.setdefault(shifts.scenario, {})
                images.setdefault(shift.identity, []).append(
                    Effect(unit, shift.before, shift.after)
                )
        pairs = [
            pair
            for scenario, images in effects.items()
            for pair in self._draw(report, scenario, images, _SIDE)
        ]
        return tuple(sorted(pairs, key=_telling))

    def _draw(
        self, report: ProbeReport, scenario: str, images: Mapping[str, list[Effect]], side: int
    ) -> Iterable[Pair]:
        examples = report.examples
        assert examples is not None
        baseline, places = self._baseline(examples)
        missing = [identity for identity in images if identity not in places]
        if missing:
            raise ImagesError(f"{missing[0]!r} is not among the {baseline.description} any more")
        batches = ProbingBatches(
            baseline.take([places[identity] for identity in images]),
            (_scenario(examples, scenario),),
            _fitting(examples.geometry),
            report.seed,
            batch_size=1,  # so that sizes may differ
            device=torch.device("cpu"),
        )
        changes = {(c.scenario, c.identity): c for c in examples.predictions}
        for batch, (identity, effects) in zip(batches.pixels(), images.items(), strict=True):
            clean, marked = (
                Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
                for pixels in batch.by_mark.values()
            )
            for picture in (clean, marked):
                picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            yield Pair(
                identity,
                scenario,
                _uri(clean),
                _uri(marked),
                *clean.size,
                tuple(sorted(effects, key=lambda effect: effect.unit.layer != "logits")),
                changes.get((scenario, identity)),
            )

    def _baseline(self, examples: Examples) -> tuple[Baseline, Mapping[str, int]]:
        """Return the images, and the place of each by its name."""
        if self._images is not None:
            key, source = "", self._images
        elif examples.images is None:
            raise ImagesError(
                "where the images are is not known: they came from memory or a Dataset"
            )
        elif self._by_name or examples.images == "builtin":
            key, source = examples.images, examples.images
        else:
            raise ImagesError(f"pass images={examples.images!r}, if those are the ones to be shown")
        if key not in self._opened:
            baseline = open_baseline(source)
            places = {identity: place for place, identity in enumerate(baseline.identities)}
            self._opened[key] = baseline, places
        return self._opened[key]


def _problem(error: Exception) -> str:
    known = isinstance(error, WatermarkGuardError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _telling(pair: Pair) -> tuple[bool, bool, int]:
    """Order images: first those of another class with the mark, then those that move a class."""
    classes = any(effect.unit.layer == "logits" for effect in pair.effects)
    return pair.change is None, not classes, -len(pair.effects)


def _worst(report: ProbeReport, number: int) -> list[tuple[SensitiveUnit, UnitExamples]]:
    """Return a report's most differentiable units of which it names images."""
    shown = report.examples.units if report.examples else ()
    units = [(report[one.layer, one.scenario].unit(one.index), one) for one in shown]
    return sorted(units, key=lambda pair: -pair[0].differentiability)[:number]


def _fitting(geometry: Mapping[str, Any]) -> Preprocessing:
    size, resize = (  # JSON has lists for tuples
        tuple(value) if isinstance(value, list) else value
        for value in (geometry["size"], geometry["resize"])
    )
    return Preprocessing(
        size,
        resize,
        interpolation=geometry["interpolation"],
        keep_exact_size=geometry.get("keep_exact_size", True),
        crop_floor=geometry.get("crop_floor", False),
    )


def _scenario(examples: Examples, name: str) -> AnyScenario:
    fields: Mapping[str, Any] = {mark["name"]: mark for mark in examples.marks}[name]
    return PairedFolder(**fields) if "folder" in fields else Scenario(**fields)


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
