"""Two releases of a model side by side: what rose, what fell, what cannot be compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.drawing import Style, table
from pytest_watermark_guard.reports.figure import (
    LINE,
    SHADES,
    legend_below,
    name_rows,
    new_figure,
)
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.release_file import fitting, read_release
from pytest_watermark_guard.reports.report import Report, Row
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.text import count, listed, printable
from pytest_watermark_guard.reports.unit_changes import (
    LEVEL,
    Place,
    UnitChange,
    changes_beyond_chance,
    has_names,
    place_of,
)
from pytest_watermark_guard.setting_values import check_threshold

FORMAT = DocumentFormat("comparison", "comparison")
SHOWN = 10
_IN_FIGURE = 30


@dataclass(frozen=True, repr=False)
class Comparison(Report):
    """What changed from one probe to a later one, see `compare`.

    Attributes
    ----------
    before, after : ProbeReport
    threshold : float
        On d, for units that crossed it.
    """

    before: ProbeReport
    after: ProbeReport
    threshold: float = 0.95

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Every layer and scenario of either probe."""
        return tuple(
            place_of(
                where, self.before.scores.get(where), self.after.scores.get(where), self.threshold
            )
            for where in dict.fromkeys((*self.after.scores, *self.before.scores))
        )

    @cached_property
    def changes(self) -> tuple[UnitChange, ...]:
        """The units that changed beyond chance, by how far their d rose; those that fell last."""
        # Of all units together: a release is one question.
        return changes_beyond_chance(
            [
                (self.before[place.layer, place.scenario], self.after[place.layer, place.scenario])
                for place in self.places
                if not place.uncompared
            ]
        )

    @property
    def rose(self) -> tuple[UnitChange, ...]:
        """The units whose d rose beyond chance, most first."""
        return tuple(unit for unit in self.changes if unit.change == "rose")

    @property
    def fell(self) -> tuple[UnitChange, ...]:
        """The units whose d fell beyond chance, most first."""
        return tuple(unit for unit in self.changes[::-1] if unit.change == "fell")

    def most_moved(self, number: int) -> tuple[UnitChange, ...]:
        """Return the `number` of changes that are largest, in the order of `changes`."""
        by_size = sorted(self.changes, key=lambda unit: -abs(unit.difference))[:number]
        return tuple(unit for unit in self.changes if unit in by_size)

    @cached_property
    def cautions(self) -> tuple[str, ...]:
        """What is not compared, and what else differs between the two probes."""
        return tuple(dict.fromkeys((*self._uncompared(), *self._differences())))

    def sentence(self) -> str:
        """Tell in a sentence what changed."""
        changes = [
            f"{len(units):,} {word}"
            for units, word in ((self.rose, "rose"), (self.fell, "fell"), (self._turned, "turned"))
            if units
        ]
        what = f"of its units {listed(changes)} beyond chance" if changes else "no unit changed"
        what += "" if changes else " beyond chance"
        if all(place.uncompared for place in self.places):
            what = "no unit could be compared"
        both = [(place.before, place.after) for place in self.places]
        largest = [(b.differentiability, a.differentiability) for b, a in both if b and a]
        before, after = (max(side) for side in zip(*largest, strict=True))
        crossed = [
            f"{count(number, 'unit')} crossed {self.threshold:g} {way}wards"
            for way, number in (
                ("up", sum(len(place.crossed_up) for place in self.places)),
                ("down", sum(len(place.crossed_down) for place in self.places)),
            )
            if number
        ]
        grounds = "; ".join([what, f"largest d {after:.3f}, was {before:.3f}", *crossed])
        return f"{printable(self.after.model)} against {printable(self.before.model)}: {grounds}."

    def _lines(self) -> Iterator[str]:
        yield self.sentence()
        yield from self.cautions

    def _rows(self) -> Iterator[Row]:
        for unit in self.changes:
            yield {
                "unit": unit.label,
                "layer": unit.layer,
                "scenario": unit.scenario,
                "d": unit.change,
                "A before": unit.before,
                "A after": unit.after,
                "difference": unit.difference,
                "low": unit.low,
                "high": unit.high,
            }

    def _figure(self) -> Any:
        units = self.most_moved(_IN_FIGURE)
        figure = new_figure(6.4, 0.24 * len(units) + 1.6)
        axis = figure.subplots()
        places = range(len(units))
        axis.hlines(places, [u.before for u in units], [u.after for u in units], color=LINE)
        for values, color, label in (
            ([unit.before for unit in units], SHADES[0], "before"),
            ([unit.after for unit in units], SHADES[3], "after"),
        ):
            axis.plot(values, places, "o", color=color, markersize=5, label=label)
        axis.axvline(0.5, color=LINE, linewidth=0.8, linestyle=":")
        name_rows(axis, [f"{unit.label}, {unit.scenario}" for unit in units], width=40)
        axis.set_xlabel("A (0.5: no reaction)")
        axis.set_title("Units that changed beyond chance", fontsize=10)
        legend_below(figure, [axis])
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as plain data, its format and version first."""
        return {
            **FORMAT.head,
            "before": _origin(self.before),
            "after": _origin(self.after),
            "threshold": self.threshold,
            "level": LEVEL,
            "sentence": self.sentence(),
            "cautions": list(self.cautions),
            "places": list(map(asdict, self.places)),
            "changes": list(map(asdict, self.changes)),
        }

    def save(self, path: str | Path) -> None:
        """Write the comparison to a JSON file."""
        FORMAT.write(path, self.to_dict(), indent=1)

    # --- how it is found ---

    @property
    def _turned(self) -> tuple[UnitChange, ...]:
        return tuple(unit for unit in self.changes if unit.change == "turned")

    def _uncompared(self) -> Iterator[str]:
        scenarios: dict[tuple[str, str], list[str]] = {}
        for place in self.places:
            if place.uncompared:
                scenarios.setdefault((place.layer, place.uncompared), []).append(place.scenario)
        for (layer, why), names in scenarios.items():
            yield printable(f"not compared: {layer} under {listed(names)} ({why})")

    def _differences(self) -> Iterator[str]:
        before, after = self.before, self.after
        if before.images_digest != after.images_digest or before.n_images != after.n_images:
            yield printable(f"other images: {before.extent} before, {after.extent} after")
        elif not before.images_digest:
            yield printable(f"the images may be others: {before.extent}, {after.extent}")
        for report, when in ((before, "before"), (after, "after")):
            if report.stopped_early:
                yield (
                    f"a gate ended the probe {when} early, by what these images showed: to "
                    "compare, probe with early_stop=0"
                )
            if report.n_images == 1:
                yield f"one image {when}: nothing tells what is beyond chance"
        for what, then, now in (
            ("seed", before.seed, after.seed),
            ("precision", before.number_format, after.number_format),
            ("preprocessing", before.preprocessing, after.preprocessing),
        ):
            if then != now:
                yield printable(f"other {what}: {then} before, {now} after")
        if before.weights != after.weights:
            yield from self._by_number()

    def _by_number(self) -> Iterator[str]:
        compared = [place for place in self.places if not place.uncompared]
        layers = dict.fromkeys(
            place.layer
            for place in compared
            if not all(map(_named, (self.before, self.after), (place,) * 2))
        )
        if layers:
            yield printable(
                f"units of {listed(layers)} are compared by their number, which means something "
                "only where one model was trained on from the other"
            )

    # --- how it is drawn ---

    def _parts(self, style: Style) -> Iterator[RenderableType]:
        yield Text(self.sentence(), style="red" if self.rose else "green")
        yield from (Text(f"Note: {caution}.", style="yellow") for caution in self.cautions)
        columns = ("layer", "scenario", "max d", "was", "rose", "fell", "unit")
        rows = [
            (
                printable(place.layer),
                printable(place.scenario),
                _d(place.after),
                _d(place.before),
                *(
                    "-" if place.uncompared else str(_number(units, place))
                    for units in (self.rose, self.fell)
                ),
                printable(place.after.label) if place.after else "-",
            )
            for place in self.places
        ]
        yield table(
            style, "Largest d, and units that changed beyond chance", columns, rows, (0, 1, 6)
        )
        if not self.changes:
            return
        shown = self.rose[:SHOWN] + self._turned[:SHOWN] + self.fell[:SHOWN]
        header = ("layer", "unit", "scenario", "change", "A", "was", "d", "was")
        units = [
            (
                printable(unit.layer),
                printable(unit.label),
                printable(unit.scenario),
                unit.change,
                *(f"{x:.3f}" for x in (unit.after, unit.before, unit.d_after, unit.d_before)),
            )
            for unit in shown
        ]
        red = [unit.change == "rose" for unit in shown]
        yield table(style, "Units that changed beyond chance", header, units, (0, 1, 2, 3), red)
        if len(shown) < len(self.changes):
            yield Text(f"... and {len(self.changes) - len(shown):,} more")


def compare(
    before: ProbeReport | str | Path,
    after: ProbeReport | str | Path,
    *,
    model: str | None = None,
    threshold: float = 0.95,
) -> Comparison:
    """Say which units react more or less strongly in a later release of a model, beyond chance.

    Parameters
    ----------
    before, after : ProbeReport or path
        Of the earlier and the later release, or JSON files of `ProbeReport.save` or ``--wm-json``.
    model : str, optional
        Which model of a file that holds several; default: that of the other side.
    threshold : float, default 0.95
        On d, for units that crossed it.

    Returns
    -------
    Comparison

    Raises
    ------
    ReportError
        If a file cannot be read or holds several models, or nothing can be compared.

    Notes
    -----
    A unit is named if its A differs by more than chance explains, both standard errors taken
    together as if the images were independent. Where they are the same, that is more careful than
    need be: of changes that small, fewer are named. Of a whole comparison, any unit that reacts as
    before is named with a probability of at most 0.05 (Holm's method, whatever the units have to do
    with each other): one wrong name would fail a gate, so a share of wrong ones among the right,
    which other methods bound, would be too many.
    """
    check_threshold(threshold)
    old = _report(before, model, after)
    new = _report(after, model, old)
    comparison = Comparison(old, new, threshold)
    if all(place.before is None or place.after is None for place in comparison.places):
        raise ReportError(
            f"{new.model!r} and {old.model!r} have nothing to compare: the one was probed for "
            f"{_asked(new)}, the other for {_asked(old)}; probe both for the same"
        )
    return comparison


@dataclass(frozen=True)
class EarlierRelease:
    """The probes that a run's are compared with (``--wm-against``)."""

    file: str  # for people
    reports: tuple[ProbeReport, ...]
    _compared: dict[tuple[ProbeReport, float], Comparison | str] = field(
        default_factory=dict, compare=False, repr=False
    )

    def told(self, report: ProbeReport, threshold: float) -> str:
        """Say in a line what changed, or why that cannot be said."""
        compared = self.compared(report, threshold)
        if isinstance(compared, str):
            return printable(f"{report.model} is compared with nothing: {compared}")
        cautions = f" ({'; '.join(compared.cautions)})" if compared.cautions else ""
        return f"{compared.sentence()}{cautions}"

    def compared(self, report: ProbeReport, threshold: float) -> Comparison | str:
        """Compare a probe with its counterpart; or return why there is nothing to compare."""
        asked = report, threshold
        # Several outputs of a run ask for the same.
        if asked not in self._compared:
            try:
                earlier = fitting(self.reports, report.model, report)
                self._compared[asked] = compare(earlier, report, threshold=threshold)
            except ReportError as error:
                self._compared[asked] = f"{self.file}: {error}"
        return self._compared[asked]


def _report(
    side: ProbeReport | str | Path, model: str | None, other: ProbeReport | str | Path
) -> ProbeReport:
    if isinstance(side, ProbeReport):
        return side
    known = other if isinstance(other, ProbeReport) else None
    reports = read_release(side)
    if known is None and len(reports) > 1 and model is None:
        # Two files: the other one may say which.
        others = read_release(str(other))
        known = others[0] if len(others) == 1 else None
    try:
        return fitting(reports, known.model if model is None and known else model, known)
    except ReportError as error:
        raise ReportError(f"{str(side)!r}: {error}") from None


def _named(report: ProbeReport, place: Place) -> bool:
    return has_names(report[place.layer, place.scenario])


def _number(units: tuple[UnitChange, ...], place: Place) -> int:
    where = place.layer, place.scenario
    return sum((unit.layer, unit.scenario) == where for unit in units)


def _asked(report: ProbeReport) -> str:
    return f"{listed(report.layers)} under {listed(report.scenarios)}"


def _origin(report: ProbeReport) -> dict[str, Any]:
    names = ("model", "weights", "baseline", "n_images", "seed", "version")
    return {name: getattr(report, name) for name in names}


def _d(unit: SensitiveUnit | None) -> str:
    return "-" if unit is None else f"{unit.differentiability:.3f}"
