"""Which images teach the shortcut: a folder, ranked by the model's own watermark detectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from pytest_watermark_guard.documents import read_document, write_document
from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.probing import recorded
from pytest_watermark_guard.report import ProbeReport, SensitiveUnit
from pytest_watermark_guard.watermarks.streams import UNMARKED

KIND = "search"
DETECTORS = 20
"""How many units a search takes from a report."""


class Find(NamedTuple):
    """One image that the detectors react to.

    Attributes
    ----------
    image : str
        Its path within the folder, or its index.
    score : float
        Mean reaction of the detectors, in standard deviations over all images searched.
    """

    image: str
    score: float


@dataclass(frozen=True)
class SearchReport:
    """The images that a model's watermark detectors react to most.

    Attributes
    ----------
    model : str
    images : str
        What was searched.
    n_images : int
    detectors : tuple of SensitiveUnit
        The units that ranked them.
    finds : tuple of Find
        Highest score first.
    notes : tuple of str
        What was assumed, guessed or left out.
    """

    model: str
    images: str
    n_images: int
    detectors: tuple[SensitiveUnit, ...]
    finds: tuple[Find, ...]
    notes: tuple[str, ...] = ()

    def table(self, width: int = 80, ascii_only: bool = False) -> str:
        """Return the finds as text for a terminal."""
        from pytest_watermark_guard.reporting.search_table import render_search

        return render_search(self, width=width, ascii_only=ascii_only)

    def gallery(self, path: str | Path, images: Any) -> None:
        """Draw the finds onto one contact sheet (PNG, JPEG or WebP), with names and scores.

        Parameters
        ----------
        path : str or path
        images : folder, Dataset, array, tensor or sequence
            What was searched: a report holds no pictures.

        Raises
        ------
        ImagesError
            If a find is not among the images, or cannot be read.
        SettingsError
            If the suffix is none of the three.
        """
        from pytest_watermark_guard.reporting.gallery import draw_gallery

        draw_gallery(self, Path(path), images)

    def save(self, path: str | Path) -> None:
        """Write the report to a JSON file."""
        write_document(path, KIND, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> SearchReport:
        """Read a report that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with read_document(path, KIND) as data:
            return cls(
                str(data["model"]),
                str(data["images"]),
                int(data["n_images"]),
                tuple(map(_read_unit, data["detectors"])),
                tuple(Find(str(image), float(score)) for image, score in data["finds"]),
                tuple(map(str, data["notes"])),
            )


def search(
    model: nn.Module | str,
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
    with recorded(model, images, (), layers, **arguments) as record:
        names, model_name = record.identities, record.model
        total = np.zeros(len(names))
        for layer in layers:
            width = len(record.recording.names.get(layer, ()))
            mine = [unit for unit in detectors if unit.layer == layer]
            if lost := [unit.index for unit in mine if unit.index >= width]:
                raise SettingsError(
                    f"search: {model_name} has no unit {lost[0]} in {layer!r}, of {width}; pass a "
                    "report of this model"
                )
            columns = record.recording[UNMARKED, layer].columns()
            total += _reactions(columns, mine).sum(axis=1)
        baseline, notes = record.baseline, record.notes
    scores = total / len(detectors)
    # Equal scores by name: the order in which images were run says nothing.
    order = sorted(range(len(names)), key=lambda i: (-scores[i], names[i]))[:top]
    finds = tuple(Find(names[i], float(scores[i])) for i in order)
    return SearchReport(model_name, baseline, len(names), detectors, finds, notes)


def _detectors(found: ProbeReport | Iterable[SensitiveUnit]) -> tuple[SensitiveUnit, ...]:
    if isinstance(found, ProbeReport):
        layer = "features" if "features" in found.layers else found.layers[0]
        scores = found[layer, found.scenarios[0]]
        return tuple(scores.unit(index) for index in scores.ranking()[:DETECTORS])
    # One that several scripts excite counts once, by its strongest reaction.
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


def _reactions(
    columns: npt.NDArray[Any], units: Sequence[SensitiveUnit]
) -> npt.NDArray[np.float64]:
    """Return standardised activations [n, units], high where a mark would move them."""
    chosen = columns[:, [unit.index for unit in units]].astype(np.float64)
    spread = chosen.std(axis=0)
    signs = np.where([unit.fires for unit in units], 1.0, -1.0)
    # A unit that never changes has nothing to say.
    return np.asarray((chosen - chosen.mean(axis=0)) * signs / np.where(spread > 0, spread, np.inf))


def _read_unit(data: dict[str, Any]) -> SensitiveUnit:
    return SensitiveUnit(
        str(data["layer"]),
        str(data["scenario"]),
        int(data["index"]),
        str(data["name"]),
        *(float(data[name]) for name in ("auroc", "differentiability", "low", "high")),
    )
