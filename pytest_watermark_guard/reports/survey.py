"""What a survey of many models found: its data, its tables and its figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.drawing import Style, rendered, table
from pytest_watermark_guard.reports.figure import (
    INK,
    LINE,
    SHADES,
    legend_below,
    name_rows,
    new_figure,
    shortened,
)
from pytest_watermark_guard.reports.names import short_names
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.report import Report, Row, saved
from pytest_watermark_guard.reports.scores import TIERS
from pytest_watermark_guard.reports.text import NAME, count, printable
from pytest_watermark_guard.reports.verdict import Verdict
from pytest_watermark_guard.setting_values import check_threshold

FORMAT = DocumentFormat("survey", "survey")


@dataclass(frozen=True, eq=False)
class ClassRanking:
    """How the same classes react in several models, under one scenario."""

    scenario: str
    models: tuple[str, ...]  # those with these classes, M of them
    left_out: tuple[str, ...]  # models with other classes, or without logits
    names: tuple[str, ...]  # of the C classes
    auroc: npt.NDArray[np.float64]  # A of each class in each model, [M, C]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of A over the models, shape [C]."""
        return np.asarray(self.auroc.mean(axis=0))

    def ranking(self) -> npt.NDArray[np.intp]:
        """Return class indices: those that fire most on the mark first, those silenced last."""
        return np.argsort(-self.mean, kind="stable")

    def ends(self, each: int) -> npt.NDArray[np.intp]:
        """Return the first and the last `each` classes of the ranking; all, if they are no more."""
        order = self.ranking()
        return order if len(order) <= 2 * each else np.concatenate([order[:each], order[-each:]])


@dataclass(frozen=True, eq=False, repr=False)
class SurveyReport(Report):
    """What a survey found.

    Attributes
    ----------
    reports : mapping of str to ProbeReport
        By the model's name, in the order asked for.
    failures : mapping of str to str
        Models that could not be probed, and why.
    """

    reports: Mapping[str, ProbeReport]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Those of any model, in order."""
        return tuple(dict.fromkeys(name for r in self.reports.values() for name in r.scenarios))

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of any model, in order."""
        return tuple(dict.fromkeys(layer for r in self.reports.values() for layer in r.layers))

    def classes(self, scenario: str) -> ClassRanking:
        """Rank the classes that most of the models have (Bykov et al., 2023, figure 2).

        Parameters
        ----------
        scenario : str

        Raises
        ------
        KeyError
            If no model has logits under this scenario.
        """
        known = {
            model: report["logits", scenario]
            for model, report in self.reports.items()
            if ("logits", scenario) in report.scores
        }
        if not known:
            raise KeyError(f"no model of this survey has logits under {scenario!r}")
        (names, _), *_ = Counter(scores.names for scores in known.values()).most_common(1)
        models = tuple(model for model, scores in known.items() if scores.names == names)
        return ClassRanking(
            scenario,
            models,
            tuple(model for model in self.reports if model not in models),
            names,
            np.array([known[model].auroc for model in models]),
        )

    def counts(self, layer: str, scenario: str, threshold: float) -> dict[str, tuple[int, int]]:
        """Return by model how many units reach a threshold on d, and of how many."""
        return {
            model: (report[layer, scenario].count(threshold), len(report[layer, scenario].names))
            for model, report in self.reports.items()
            if (layer, scenario) in report.scores
        }

    def by_counts(self, layer: str, scenario: str) -> list[str]:
        """Return the models by the share of units that reach the tiers, the largest first."""
        tiers = [self.counts(layer, scenario, tier) for tier in TIERS]
        return sorted(
            tiers[0], key=lambda name: [-counts[name][0] / counts[name][1] for counts in tiers]
        )

    def plot(self, path: str | Path | None = None, scenario: str | None = None) -> Any:
        """Draw one scenario, by default Chinese or else the first; see `Report.plot`.

        Raises
        ------
        SettingsError
            If matplotlib is missing, or no model was probed under this scenario.
        """
        if scenario is None:
            scenario = "chinese" if "chinese" in self.scenarios else next(iter(self.scenarios), "")
        if scenario not in self.scenarios:
            raise SettingsError(
                f"scenario: no model was probed under {scenario!r}, only under "
                f"{', '.join(self.scenarios) or 'none'}"
            )
        return saved(draw_survey(self, scenario), path)

    def _lines(self) -> Iterator[str]:
        failed = f", {len(self.failures)} could not be probed" if self.failures else ""
        yield f"{count(len(self.reports), 'model')}{failed}"
        for row in self._rows():
            yield f"{row['model']}: largest d {row['d']:.3f}, {row['strongest']}"
        yield from (f"{model}: could not be probed" for model in self.failures)

    def _rows(self) -> Iterator[Row]:
        units = {
            model: max((s.strongest() for s in report), key=lambda unit: unit.differentiability)
            for model, report in self.reports.items()
        }
        for model, unit in sorted(units.items(), key=lambda item: -item[1].differentiability):
            places = list(self.reports[model])
            yield {
                "model": model,
                "d": unit.differentiability,
                "strongest": f"{unit.layer} {unit.label}, {unit.scenario}",
                **{f"d >= {tier:g}": sum(s.count(tier) for s in places) for tier in TIERS},
                "images": self.reports[model].n_images,
            }

    def _parts(self, style: Style) -> Iterator[RenderableType]:
        return _parts(self, style)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: the reports by their models, and the failures."""
        reports = {name: report.to_dict() for name, report in self.reports.items()}
        return {"reports": reports, "failures": dict(self.failures)}

    def to_html(self, path: str | Path, threshold: float = 0.95, images: Any = None) -> None:
        """Write the survey to one HTML file that opens offline; as `ProbeReport.to_html`."""
        from pytest_watermark_guard import write_html

        check_threshold(threshold)
        entries = [(replace(report, model=name), ()) for name, report in self.reports.items()]
        write_html(path, entries, threshold, failures=self.failures, images=images)

    def save(self, path: str | Path) -> None:
        """Write the survey to a JSON file."""
        FORMAT.write(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> SurveyReport:
        """Read a survey that `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with FORMAT.reading_json(path) as data:
            reports = {
                str(name): ProbeReport.from_dict(report) for name, report in data["reports"].items()
            }
            failures = {str(name): str(reason) for name, reason in data["failures"].items()}
            return cls(reports, failures)


def all_rankings(survey: SurveyReport) -> list[ClassRanking]:
    """Return the classes' ranking under each scenario that the logits were probed under."""
    return [
        survey.classes(scenario)
        for scenario in survey.scenarios
        if any(("logits", scenario) in report.scores for report in survey.reports.values())
    ]


def unequal_images(survey: SurveyReport) -> str | None:
    """Say that models were probed on different numbers of images, if they were."""
    sizes = {report.n_images for report in survey.reports.values()}
    if len(sizes) < 2:
        return None
    return (
        f"Between {min(sizes):,} and {max(sizes):,} images each: a gate ends when its verdict is "
        "certain. Tables of all images: --wm-early-stop=0, or survey()."
    )


def ranking_caution(ranking: ClassRanking) -> str | None:
    """Say which models a ranking leaves out, and what it assumes of the others."""
    sentences = []
    if ranking.left_out:
        sentences.append(
            f"Without models of other classes: {printable(', '.join(ranking.left_out))}."
        )
    if len(ranking.models) > 1 and ranking.names == tuple(map(str, range(len(ranking.names)))):
        sentences.append("The classes have numbers and no names, and are taken to be the same.")
    return " ".join(sentences) or None


_IN_TABLE = 10  # classes at either end of the ranking


def render_survey(
    survey: SurveyReport,
    undecided: Sequence[Verdict] = (),
    *,
    specs: bool = True,
    width: int = 80,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """Draw the tables of a survey, below what gates could not decide; returns lines.

    Without `specs`, only what short names stand for is left out: something above says it.
    """
    style = Style(width, ascii_only)
    return rendered(_parts(survey, style, undecided, specs), style, color)


def _parts(
    survey: SurveyReport, style: Style, undecided: Sequence[Verdict] = (), specs: bool = True
) -> Iterator[RenderableType]:
    title = f"Survey of {count(len(survey.reports), 'model')}"
    yield Text(title if survey.reports else "Could not be probed", style="bold")
    for model, name in short_names(survey.reports).items():
        if specs and name != model:
            yield Text(f"{printable(name)}: {printable(model)}")
    for model, reason in survey.failures.items():
        one_line = printable(" ".join(reason.split()))
        yield Text(f"Not probed: {printable(model)}: {one_line}", style="red")
    for verdict in undecided:
        word = verdict.outcome.capitalize()
        yield Text(f"{word}: {printable(verdict.report.model)}: {verdict.grounds()}.", style="red")
    if (caution := unequal_images(survey)) is not None:
        yield Text(caution)
    for layer in survey.layers:
        yield _counts(survey, layer, style)
    for ranking in all_rankings(survey) if len(survey.reports) > 1 else ():
        yield from _classes(ranking, style)


def _counts(survey: SurveyReport, layer: str, style: Style) -> RenderableType:
    rows = []
    short = short_names(survey.reports)
    for model, report in survey.reports.items():
        known = {scores.scenario: scores for scores in report if scores.layer == layer}
        cells = [
            "/".join(str(known[name].count(tier)) for tier in TIERS) if name in known else "-"
            for name in survey.scenarios
        ]
        units = str(*{len(scores.names) for scores in known.values()}) or "-"
        highest = [scores.differentiability.max() for scores in known.values()]
        worst = f"{max(highest):.3f}" if highest else "-"
        rows.append((printable(short[model]), units, *cells, worst))
    tiers = "/".join(f"{tier:g}".lstrip("0") for tier in TIERS)
    columns = ("model", "units", *map(printable, survey.scenarios), "max d")
    title = f"{printable(layer)} with d >= {tiers}"
    return table(style, title[:1].upper() + title[1:], columns, rows, words=(0,))


def _classes(ranking: ClassRanking, style: Style) -> Iterator[RenderableType]:
    shown = ranking.ends(_IN_TABLE)
    rows = []
    for index in shown:
        areas = ranking.auroc[:, index]
        name = printable(f"{ranking.names[index]} [{index}]", NAME)
        rows.append((name, *(f"{area:.3f}" for area in (areas.mean(), areas.min(), areas.max()))))
    over = f"over {count(len(ranking.models), 'model')}"
    title = f"Classes by mean A under {printable(ranking.scenario)}, {over}"
    yield table(style, title, ("class", "mean A", "lowest", "highest"), rows, words=(0,))
    if hidden := len(ranking.names) - len(shown):
        yield Text(f"The {_IN_TABLE} highest and lowest; {hidden:,} classes between them.")
    if (caution := ranking_caution(ranking)) is not None:
        yield Text(caution)


_IN_FIGURE = 12  # classes at either end of the ranking
_ROWS = 14  # of models, that a panel has room for at least
_MANY = 20  # models, whose dots would hide each other


def draw_survey(survey: SurveyReport, scenario: str) -> Any:
    """Draw the classes' ranking, a dot for each model, and each model's units by d."""
    layers = [layer for layer in survey.layers if survey.counts(layer, scenario, TIERS[0])]
    with_classes = "logits" in layers
    models = max(len(survey.counts(layer, scenario, TIERS[0])) for layer in layers)
    height = max(4.0, 0.24 * models + 2.2, 0.24 * (2 * _IN_FIGURE) + 2.2 if with_classes else 0)
    panels = len(layers) + with_classes
    figure = new_figure(4.6 * panels, height)
    axes = list(np.atleast_1d(figure.subplots(1, panels)))
    figure.suptitle(f"Reaction to {scenario} marks, {len(survey.reports)} models")
    if with_classes:
        ranking = survey.classes(scenario)
        axis = axes.pop(0)
        draw_classes(axis, ranking, _IN_FIGURE)
        some = len(ranking.models) < len(survey.reports)
        models_shown = f" of {len(ranking.models)} models" if some else ""
        axis.set_title(f"Classes, highest and lowest mean A{models_shown}", fontsize=10)
    for axis, layer in zip(axes, layers, strict=True):
        draw_counts(axis, survey, layer, scenario, rows=_ROWS)
        axis.set_title(f"{shortened(layer)}: units by d", fontsize=10)
    legend_below(figure, figure.axes, across=6)
    return figure


def draw_classes(axis: Any, ranking: ClassRanking, each: int) -> None:
    """Draw the first and last `each` classes of a ranking, a dot for each model."""
    order = ranking.ends(each)
    places = np.arange(len(order))
    alpha = 1 if len(ranking.models) <= _MANY else 0.35
    for row, areas in enumerate(ranking.auroc):
        label = "one model" if row == 0 else None
        axis.plot(
            areas[order], places, "o", color=SHADES[1], markersize=3, label=label, alpha=alpha
        )
    axis.plot(
        ranking.mean[order], places, "|", color=INK, markersize=10, markeredgewidth=1.6,
        label="mean",
    )  # fmt: skip
    axis.axvline(0.5, color=LINE, linewidth=0.8)
    if len(order) < len(ranking.names):
        axis.axhline(each - 0.5, color=LINE, linewidth=0.8, linestyle=":")
    name_rows(axis, [ranking.names[index] for index in order])
    axis.set_xlabel("A (0.5: no reaction)")


def draw_counts(axis: Any, survey: SurveyReport, layer: str, scenario: str, rows: int = 0) -> None:
    """Draw for each model how many units reach each tier, the model with the most on top.

    A few models get bars no thicker than `rows` of them would.
    """
    tiers = [survey.counts(layer, scenario, tier) for tier in TIERS]
    models = survey.by_counts(layer, scenario)
    places = np.arange(len(models))
    for tier, counts, shade in zip(TIERS, tiers, SHADES, strict=True):
        shares = [100 * counts[name][0] / counts[name][1] for name in models]
        axis.barh(places, shares, color=shade, label=f"d ≥ {tier:g}")
    for place, name in zip(places, models, strict=True):
        number, units = tiers[0][name]
        axis.text(100 * number / units, place, f" {number}", va="center", fontsize=8)
    short = short_names(survey.reports)
    name_rows(axis, [short[name] for name in models], least=rows)
    axis.margins(x=0.12)
    axis.set_xlabel(f"% of units (number: with d ≥ {TIERS[0]:g})")
