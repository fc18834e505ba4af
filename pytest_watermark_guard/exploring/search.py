"""Which images teach the shortcut: a folder, ranked by the model's own watermark detectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.models.near_misses import AnyModel
from pytest_watermark_guard.probing.detectors import of_units, reactions
from pytest_watermark_guard.probing.recorded import recorded
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.search import Find, SearchReport
from pytest_watermark_guard.watermarks.streams import UNMARKED

_NORMAL_MAD = NormalDist().inv_cdf(0.75)  # median distance from the median, of a normal's spread
DETECTORS = 20
"""How many units a search takes from a report."""


def search(
    model: AnyModel,
    images: Any,
    found: ProbeReport | Sequence[SensitiveUnit],
    top: int | None = 50,
    **arguments: Any,
) -> SearchReport:
    """Rank images, as those that a model was trained on, by the model's own watermark detectors.

    Each detector's activations are standardised over the images, and turned round for a unit that
    marks silence; an image's score is their mean. Most of the images should be without marks: what
    all of them carry is nothing that stands out.

    Parameters
    ----------
    model : Module or str
        The probed one, or another with the same units.
    images : folder, Dataset, array, tensor or sequence
        Where to search.
    found : ProbeReport or sequence of SensitiveUnit
        A report of the model: its 20 most differentiable units of the features under its first
        scenario search, or of the first layer where there are no features. Or the units
        themselves, such as ``report.sensitive(0.8)``.
    top : int or None, default 50
        How many images to name; None: all.
    **arguments
        ``preprocess``, ``batch_size``, ``name``, ``progress``, ``device``, ``precision``,
        ``max_images``, ``seed`` and ``cache``, as for `probe`.

    Returns
    -------
    SearchReport

    Raises
    ------
    SettingsError
        If there is no detector, the model has no such unit, or `top` is not positive.
    WatermarkGuardError
        As `probe`.

    Examples
    --------
    >>> report = wm.probe(model, "photos/", scenarios=("chinese",))  # doctest: +SKIP
    >>> finds = wm.search(model, "training_images/", report)  # doctest: +SKIP
    >>> print(finds.table())  # doctest: +SKIP
    >>> finds.gallery("finds.png", "training_images/")  # doctest: +SKIP
    """
    if top is not None and (not isinstance(top, int) or top < 1):
        raise SettingsError(f"search: top must be an integer >= 1, or None for all, got {top!r}")
    detectors = _detectors(found)
    layers = tuple(dict.fromkeys(unit.layer for unit in detectors))
    with recorded(model, images, (), layers, **arguments) as activations:
        names, recording = activations.identities, activations.recording
        total = np.zeros(len(names))
        for layer in layers:
            width = len(recording.names.get(layer, ()))
            units = [unit for unit in detectors if unit.layer == layer]
            if missing := [unit.index for unit in units if unit.index >= width]:
                raise SettingsError(
                    f"search: {activations.model} has no unit {missing[0]} in {layer!r}, of "
                    f"{width}; pass a report of this model"
                )
            total += reactions(of_units(recording, UNMARKED, units), units).sum(axis=1)
    scores = total / len(detectors)
    # Equal scores by name: the order in which images were run says nothing.
    order = sorted(range(len(names)), key=lambda i: (-scores[i], names[i]))[:top]
    finds = tuple(Find(names[i], float(scores[i])) for i in order)
    return SearchReport(
        activations.model,
        activations.baseline,
        len(names),
        detectors,
        finds,
        activations.notes,
        _cutoff(scores),
    )


def _cutoff(scores: npt.NDArray[np.float64]) -> float | None:
    """Return the score that one image in two such searches would reach if none had a mark.

    By the median and the spread around it, which a minority of marked images hardly moves; None
    where all images but a minority have one score.
    """
    middle = float(np.median(scores))
    spread = float(np.median(np.abs(scores - middle))) / _NORMAL_MAD
    if spread == 0:
        return None
    return middle + spread * NormalDist().inv_cdf(1 - 0.5 / max(2, len(scores)))


def _detectors(found: ProbeReport | Iterable[SensitiveUnit]) -> tuple[SensitiveUnit, ...]:
    if isinstance(found, ProbeReport):
        layer = "features" if "features" in found.layers else found.layers[0]
        scores = found[layer, found.scenarios[0]]
        return tuple(scores.unit(index) for index in scores.ranking()[:DETECTORS])
    # One that several scenarios excite counts once, by its strongest reaction.
    strongest: dict[tuple[str, int], SensitiveUnit] = {}
    for unit in found:
        if not isinstance(unit, SensitiveUnit):
            raise SettingsError(
                f"search: pass a ProbeReport, or units such as report.sensitive(0.8), got "
                f"{type(unit).__name__}"
            )
        key = unit.layer, unit.index
        if key not in strongest or unit.differentiability > strongest[key].differentiability:
            strongest[key] = unit
    if not strongest:
        raise SettingsError("search: no unit to search by; lower the threshold that chose them")
    return tuple(strongest.values())
