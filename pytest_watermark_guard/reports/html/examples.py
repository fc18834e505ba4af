"""Example images, drawn again from the names that reports give."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
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
    """The images of one unit.

    Attributes
    ----------
    model : str
    unit : SensitiveUnit
    groups : tuple of (str, tuple of Pair)
        Most and least affected.
    problem : str
        Why images could not be drawn; empty if all were.
    """

    model: str
    unit: SensitiveUnit
    groups: tuple[tuple[str, tuple[Pair, ...]], ...]
    problem: str


def galleries(
    reports: Sequence[ProbeReport], images: Any = None, by_name: bool = False
) -> list[Gallery]:
    """Draw the images of the worst units.

    Parameters
    ----------
    reports : sequence of ProbeReport
    images : optional
        The baseline, as for `probe`.
    by_name : bool, default False
        Where there is no `images`, open what each report names: only for reports that are
        trusted, since images of a folder of their choice are put on the page.

    Returns
    -------
    list of Gallery
        Worst first, of every model about as many. One whose images cannot be drawn says why.
    """
    chosen = _chosen(reports)
    opened: dict[str, Baseline] = {}
    return [_gallery(report, examples, images, by_name, opened) for report, examples in chosen]


def _chosen(reports: Sequence[ProbeReport]) -> list[tuple[ProbeReport, UnitExamples]]:
    each = max(2, UNITS // max(1, len(reports)))
    chosen = [
        (report, unit)
        for report in reports
        if report.examples
        for unit in sorted(
            report.examples.units, key=lambda u: -_unit(report, u).differentiability
        )[:each]
    ]
    return sorted(chosen, key=lambda f: -_unit(*f).differentiability)[:UNITS]


def _unit(report: ProbeReport, examples: UnitExamples) -> SensitiveUnit:
    return report[examples.layer, examples.scenario].unit(examples.index)


def _gallery(
    report: ProbeReport,
    examples: UnitExamples,
    images: Any,
    by_name: bool,
    opened: dict[str, Baseline],
) -> Gallery:
    assert report.examples is not None
    groups: tuple[tuple[str, tuple[Pair, ...]], ...] = ()
    problem = ""
    try:
        baseline = _baseline(report.examples, images, by_name, opened)
        groups = tuple(
            (title, _pairs(report, examples.scenario, shifts, baseline))
            for title, shifts in (
                ("Most affected", examples.most),
                ("Least affected", examples.least),
            )
        )
    except WatermarkGuardError as error:
        problem = str(error)
    # A report may have been changed, and describe marks that cannot be drawn.
    except (TypeError, ValueError, KeyError, IndexError) as error:
        problem = f"{type(error).__name__}: {error}"
    return Gallery(report.model, _unit(report, examples), groups, problem)


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


def _pairs(
    report: ProbeReport, scenario: str, shifts: Sequence[Shift], baseline: Baseline
) -> tuple[Pair, ...]:
    assert report.examples is not None
    places = {identity: place for place, identity in enumerate(baseline.identities)}
    missing = [shift.identity for shift in shifts if shift.identity not in places]
    if missing:
        raise ImagesError(f"{missing[0]!r} is not among the {baseline.description} any more")
    geometry = report.examples.geometry
    size, resize = (
        tuple(value) if isinstance(value, list | tuple) else value
        for value in (geometry["size"], geometry["resize"])
    )
    batches = ProbingBatches(
        baseline.take([places[shift.identity] for shift in shifts]),
        (_scenario(report.examples, scenario),),
        Preprocessing(
            size,
            resize,
            interpolation=geometry["interpolation"],
            keep_exact_size=geometry.get("keep_exact_size", True),
            crop_floor=geometry.get("crop_floor", False),
        ),
        report.seed,
        batch_size=1,  # so that sizes may differ
        device=torch.device("cpu"),
    )
    drawn = [batch.by_mark for batch in batches.pixels()]
    return tuple(
        Pair(*_thumbnails([pixels[0] for pixels in by_mark.values()]), shift)
        for by_mark, shift in zip(drawn, shifts, strict=True)
    )


def _scenario(examples: Examples, name: str) -> AnyScenario:
    fields: Mapping[str, Any] = next(mark for mark in examples.marks if mark["name"] == name)
    return PairedFolder(**fields) if "folder" in fields else Scenario(**fields)


def _thumbnails(pixels: Sequence[torch.Tensor]) -> tuple[str, str, int, int]:
    pictures = [Image.fromarray(np.ascontiguousarray(p.permute(1, 2, 0).numpy())) for p in pixels]
    for picture in pictures:
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    clean, marked = map(_uri, pictures)
    return clean, marked, pictures[0].width, pictures[0].height


def _uri(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
