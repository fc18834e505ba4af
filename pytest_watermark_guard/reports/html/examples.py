"""Example images, drawn again from the names that reports give."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from pytest_watermark_guard.errors import ImagesError, WatermarkGuardError
from pytest_watermark_guard.images.baseline import Baseline, open_baseline
from pytest_watermark_guard.images.batches import ProbingBatches
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.reports.examples import Examples, Shift, UnitExamples
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, PairedFolder, Scenario

UNITS = 8  # on one page
_SIDE = 144  # pixels
_QUALITY = 72


class Pair(NamedTuple):
    """One image with and without its mark, as ``data:`` URIs, and what the mark does."""

    clean: str
    marked: str
    width: int
    height: int
    shift: Shift


class Gallery(NamedTuple):
    """The images of one unit, most and least affected, by title."""

    model: str
    unit: SensitiveUnit
    groups: tuple[tuple[str, tuple[Pair, ...]], ...]
    problem: str  # why images could not be drawn; empty if all were


def galleries(
    reports: Sequence[ProbeReport], images: Any = None, by_name: bool = False
) -> list[Gallery]:
    """Draw the images of the worst units, of every model about as many, the worst unit first.

    Without `images`, `by_name` opens what each report names: only for reports that are trusted,
    since images of a folder of their choice are put on the page. A gallery whose images cannot be
    drawn says why.
    """
    each = max(2, UNITS // max(1, len(reports)))
    chosen: list[_Chosen] = []
    for report in reports:
        if report.examples:
            units = [_Chosen(report, report.examples, unit) for unit in report.examples.units]
            chosen += sorted(units, key=_by_d)[:each]
    opened: dict[str, Baseline] = {}
    return [_gallery(unit, images, by_name, opened) for unit in sorted(chosen, key=_by_d)[:UNITS]]


class _Chosen(NamedTuple):
    report: ProbeReport
    examples: Examples
    shifts: UnitExamples

    @property
    def unit(self) -> SensitiveUnit:
        return self.report[self.shifts.layer, self.shifts.scenario].unit(self.shifts.index)


def _by_d(chosen: _Chosen) -> float:
    return -chosen.unit.differentiability


def _gallery(chosen: _Chosen, images: Any, by_name: bool, opened: dict[str, Baseline]) -> Gallery:
    groups: tuple[tuple[str, tuple[Pair, ...]], ...] = ()
    problem = ""
    try:
        baseline = _baseline(chosen.examples, images, by_name, opened)
        groups = (
            ("Most affected", _pairs(chosen, chosen.shifts.most, baseline)),
            ("Least affected", _pairs(chosen, chosen.shifts.least, baseline)),
        )
    except WatermarkGuardError as error:
        problem = str(error)
    # A report may have been changed, and describe marks that cannot be drawn.
    except (TypeError, ValueError, KeyError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
    return Gallery(chosen.report.model, chosen.unit, groups, problem)


def _baseline(
    examples: Examples, images: Any, by_name: bool, opened: dict[str, Baseline]
) -> Baseline:
    if images is not None:
        key, source = "", images
    elif examples.images is None:
        raise ImagesError("where the images are is not known: they came from memory or a Dataset")
    elif by_name or examples.images == "builtin":
        key, source = examples.images, examples.images
    else:
        raise ImagesError(f"pass images={examples.images!r}, if those are the ones to be shown")
    if key not in opened:
        opened[key] = open_baseline(source)
    return opened[key]


def _pairs(chosen: _Chosen, shifts: Sequence[Shift], baseline: Baseline) -> tuple[Pair, ...]:
    places = {identity: place for place, identity in enumerate(baseline.identities)}
    missing = [shift.identity for shift in shifts if shift.identity not in places]
    if missing:
        raise ImagesError(f"{missing[0]!r} is not among the {baseline.description} any more")
    geometry = chosen.examples.geometry
    size, resize = (  # JSON has lists for tuples
        tuple(value) if isinstance(value, list) else value
        for value in (geometry["size"], geometry["resize"])
    )
    batches = ProbingBatches(
        baseline.take([places[shift.identity] for shift in shifts]),
        (_scenario(chosen.examples, chosen.shifts.scenario),),
        Preprocessing(
            size,
            resize,
            interpolation=geometry["interpolation"],
            keep_exact_size=geometry.get("keep_exact_size", True),
            crop_floor=geometry.get("crop_floor", False),
        ),
        chosen.report.seed,
        batch_size=1,  # so that sizes may differ
        device=torch.device("cpu"),
    )
    return tuple(
        _pair(batch.by_mark, shift) for batch, shift in zip(batches.pixels(), shifts, strict=True)
    )


def _scenario(examples: Examples, name: str) -> AnyScenario:
    fields: Mapping[str, Any] = next(mark for mark in examples.marks if mark["name"] == name)
    return PairedFolder(**fields) if "folder" in fields else Scenario(**fields)


def _pair(by_mark: Mapping[str, torch.Tensor], shift: Shift) -> Pair:
    pictures = [Image.fromarray(p[0].permute(1, 2, 0).numpy()) for p in by_mark.values()]
    for picture in pictures:
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    clean, marked = map(_uri, pictures)
    return Pair(clean, marked, pictures[0].width, pictures[0].height, shift)


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
