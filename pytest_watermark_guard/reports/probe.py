"""What a probe found, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.early_stop import EarlyStop
from pytest_watermark_guard.reports.examples import Examples
from pytest_watermark_guard.reports.impact import Impact
from pytest_watermark_guard.reports.probe_figure import draw_probe
from pytest_watermark_guard.reports.report import Report, Row
from pytest_watermark_guard.reports.scores import TIERS, Scores, SensitiveUnit, dead_layers
from pytest_watermark_guard.setting_values import check_threshold

FORMAT = DocumentFormat("report", "probe report")


@dataclass(frozen=True, eq=False, repr=False)
class ProbeReport(Report):
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
        A of the watermark (1) against its strokes, scrambled (0). Near 0.5 the unit does not tell
        the two apart; whether it reacts to both or to neither, `controls_alone` says. Empty if not
        asked for.
    controls_alone : mapping of (layer, scenario, kind) to Scores
        A of a control (1) against images without a mark (0). Of kind "strokes" are the mark's
        strokes, scrambled; of kind "blobs" is as much ink without strokes. Empty if not asked for.
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
    dead_units : mapping of str to int
        By layer, how many units are the same for all images, marked and unmarked; layers without
        any are left out.
    assumptions : tuple of str
        Those of the notes that say what the numbers stand on without anybody having said it.
    images_digest : str
        Short digest of the images that were used, whatever their folder; empty if it is unknown.
    all_weights : str
        Identity of all the model's weights, those of its head too; empty if nothing needed it.
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
    controls_alone: Mapping[tuple[str, str, str], Scores] = field(default_factory=dict)
    early_stop: EarlyStop | None = None
    weights: str = ""
    examples: Examples | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    dead_units: Mapping[str, int] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    images_digest: str = ""
    all_weights: str = ""

    @property
    def clean(self) -> bool:
        """Whether every d is below 0.7 beyond chance, as far as that can be told."""
        ends = [scores.largest and scores.largest[1] for scores in self]
        return bool(ends) and all(end is not None and end < TIERS[0] for end in ends)

    @property
    def number_format(self) -> str:
        """What the model computed in: `precision` without how it was made fast."""
        return ", ".join(part for part in self.precision.split(", ") if "float" in part)

    @property
    def dead_layers(self) -> tuple[str, ...]:
        """The layers of which no unit ever changes: nothing can be said of them."""
        return dead_layers(self.dead_units, self)

    @property
    def extent(self) -> str:
        """Which images were used, in words."""
        drawn, of, all_images = self.baseline.partition(" of ")
        # "200 of 998 images of photos": a sample of a baseline.
        sampled = bool(of) and drawn.isdecimal() and all_images[:1].isdecimal()
        images = f"{drawn} images drawn from the {all_images}" if sampled else self.baseline
        return f"the first {self.n_images:,} of {images}" if self.stopped_early else images

    @property
    def stopped_early(self) -> bool:
        """Whether a gate ended the probe before the last image."""
        return self.early_stop is not None and self.n_images < self.early_stop.n_available

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers probed, in order."""
        return tuple(dict.fromkeys(layer for layer, _ in self.scores))

    @property
    def by_layer(self) -> list[list[Scores]]:
        """The scores of each layer, one for each scenario."""
        return [[one for one in self if one.layer == layer] for layer in self.layers]

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

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, its format and version first."""
        return {
            **FORMAT.head,
            **{name: getattr(self, name) for name in _PLAIN_FIELDS},
            "notes": list(self.notes),
            "assumptions": list(self.assumptions),
            "names": {scores.layer: list(scores.names) for scores in self},
            "scores": [scores.to_dict() for scores in self],
            "controls": [scores.to_dict() for scores in self.controls.values()],
            "controls_alone": [
                {"control": kind, **scores.to_dict()}
                for (_, _, kind), scores in self.controls_alone.items()
            ],
            "impact": {name: impact.to_dict() for name, impact in self.impact.items()},
            "early_stop": self.early_stop and self.early_stop.to_dict(),
            "weights": self.weights,
            "images_digest": self.images_digest,
            "all_weights": self.all_weights,
            "versions": dict(self.versions),
            "dead_units": dict(self.dead_units),
            "examples": self.examples and asdict(self.examples),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProbeReport:
        """Read what `to_dict` gave; for use in `DocumentFormat.reading`."""
        FORMAT.check(data)
        n_images, names = int(data["n_images"]), data["names"]

        def read_one(entry: Mapping[str, Any]) -> Scores:
            return Scores.from_dict(entry, n_images, names[entry["layer"]])

        def read(entries: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Scores]:
            units = map(read_one, entries)
            return {(scores.layer, scores.scenario): scores for scores in units}

        alone = [
            (str(entry["control"]), read_one(entry)) for entry in data.get("controls_alone", ())
        ]
        early_stop, examples = data.get("early_stop"), data.get("examples")
        return cls(
            **{name: kind(data[name]) for name, kind in _PLAIN_FIELDS.items()},
            scores=read(data["scores"]),
            impact={name: Impact.from_dict(impact) for name, impact in data["impact"].items()},
            notes=tuple(map(str, data["notes"])),
            assumptions=tuple(map(str, data.get("assumptions", ()))),
            controls=read(data.get("controls", ())),  # the first reports had none
            controls_alone={(one.layer, one.scenario, kind): one for kind, one in alone},
            early_stop=early_stop and EarlyStop.from_dict(early_stop),
            weights=str(data.get("weights", "")),
            images_digest=str(data.get("images_digest", "")),
            all_weights=str(data.get("all_weights", "")),
            examples=examples and Examples.from_dict(examples),
            versions={str(k): str(v) for k, v in data.get("versions", {}).items()},
            dead_units={str(k): int(v) for k, v in data.get("dead_units", {}).items()},
        )

    def to_json(self) -> str:
        """Return the report as JSON text; every number survives the round trip exactly."""
        return FORMAT.to_json(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> ProbeReport:
        """Read what `to_json` wrote.

        Raises
        ------
        ReportError
            If it is something else, or of a newer format.
        """
        with FORMAT.reading():
            return cls.from_dict(FORMAT.parse(text))

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

    def table(self, width: int = 80, ascii_only: bool = False, color: bool = False) -> str:
        """Return the tables of ``pytest --wm-report``; units with d from 0.95 on are red."""
        from pytest_watermark_guard import render_reports

        entries = [(self, ())]
        return render_reports(entries, 0.95, width=width, ascii_only=ascii_only, color=color)

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}: {self.extent}, seed {self.seed}"
        strongest = sorted((each.strongest() for each in self), key=lambda u: -u.differentiability)
        for unit in strongest:
            d = f"largest d {unit.differentiability:.3f}"
            yield f"{unit.layer} under {unit.scenario}: {d}, {unit.label}"

    def _rows(self) -> Iterator[Row]:
        units = (scores.unit(index) for scores in self for index in range(len(scores.names)))
        for unit in sorted(units, key=lambda unit: -unit.differentiability):
            yield {
                "layer": unit.layer,
                "scenario": unit.scenario,
                "index": unit.index,
                "name": unit.name,
                "A": unit.auroc,
                "low": unit.low,
                "high": unit.high,
                "d": unit.differentiability,
            }

    def _figure(self) -> Any:
        return draw_probe(self.model, self.by_layer)

    def save(self, path: str | Path) -> None:
        """Write the report to a JSON file."""
        FORMAT.write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> ProbeReport:
        """Read a report that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with FORMAT.reading_json(path) as data:
            return cls.from_dict(data)


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
