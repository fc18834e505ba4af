"""The page itself: one file, no request to anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pytest_watermark_guard.caching.files import write_text_atomically
from pytest_watermark_guard.reports.controls import (
    control_columns,
    control_legend,
    control_sentences,
)
from pytest_watermark_guard.reports.html import comparison, figures, view
from pytest_watermark_guard.reports.html.environment import render_page
from pytest_watermark_guard.reports.html.origin import Origin, today
from pytest_watermark_guard.reports.html.ownership import ownership_headline, ownership_verdict
from pytest_watermark_guard.reports.html.units import ROWS, first_rows, packed
from pytest_watermark_guard.reports.masked import Masked
from pytest_watermark_guard.reports.ownership import OwnershipReport
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.releases import Comparison
from pytest_watermark_guard.reports.report import Report, cell_text
from pytest_watermark_guard.reports.scores import TIERS
from pytest_watermark_guard.reports.verdict import Verdict

_CHANGES = 50  # units of a comparison in its table


def write_html(
    path: str | Path,
    entries: Sequence[tuple[ProbeReport, Sequence[Verdict]]],
    threshold: float = 0.95,
    *,
    masked: Sequence[Masked] = (),
    owned: Sequence[OwnershipReport] = (),
    failures: Mapping[str, str] | None = None,
    origin: Origin | None = None,
    images: Any = None,
    by_name: bool = False,
    changes: Sequence[str] = (),
    interrupted: bool = False,
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Write probes and their verdicts into one HTML file that opens offline.

    Parameters
    ----------
    path : str or Path
    entries : sequence of (ProbeReport, sequence of Verdict)
        Each probe with the verdicts of the gates that used it.
    threshold : float, default 0.95
        For probes that no gate used: units with d at or above it are shown as sensitive.
    masked : sequence of Masked, optional
        What was masked in the run's tests.
    owned : sequence of OwnershipReport, optional
        Verifications of ownership.
    failures : mapping of str to str, optional
        Models that could not be probed, and why.
    origin : Origin, optional
        The command and versions that make the numbers again.
    images, by_name
        Where example images are, see `reports.html.examples.Drawer`.
    changes : sequence of str, optional
        What changed since an earlier release, in sentences.
    interrupted : bool, default False
        Whether the run ended before all of its tests had.
    comparisons : sequence of Comparison, optional
        The same, unit by unit.
    """
    failures = failures or {}
    judged = view.judged(entries, threshold)
    models = view.models(entries, judged)
    verdicts = [ownership_verdict(report) for report in owned]
    headline = view.headline(models, failures)
    if verdicts and not (models or failures):
        headline = view.Headline(*ownership_headline(verdicts))
    survey = comparison.survey_of(judged)
    rankings = comparison.rankings(survey) if survey else []
    drawable = figures.can_draw()
    controls = control_columns(probe.report for probe in judged)
    impact = [(probe, *item) for probe in judged for item in probe.report.impact.items()]
    pair, galleries = None, []
    notes = view.notes(models, comparison.cautions(survey, rankings) if survey else [])
    if any(report.examples for report, _ in entries):
        # Drawing takes torch.
        from pytest_watermark_guard.reports.html.examples import Drawer

        drawer = Drawer(images, by_name)
        (pair, problem), galleries = drawer.leading(models[0]), drawer.galleries(models)
        if problem and problem not in (gallery.problem for gallery in galleries):
            of = models[0].name if len(models) > 1 else ""
            notes.append((f"The image that tells most cannot be shown: {problem}.", of))
    counts = list(view.counts(judged))
    layers = list(dict.fromkeys(layer for probe in judged for layer in probe.report.layers))
    scenarios = list(dict.fromkeys(name for probe in judged for name in probe.report.scenarios))
    text = render_page(
        "page.html",
        headline=headline,
        date=origin.date if origin else today(),
        models=models,
        pair=pair,
        notes=notes,
        failures=failures,
        changes=changes,
        interrupted=interrupted,
        comparisons=[(c, c.most_moved(_CHANGES)) for c in comparisons if c.changes],
        counts=counts,
        tiers=TIERS,
        impact=impact,
        columns={
            "model": len(models) > 1,
            "layer": len(layers) > 1,
            "scenario": len(scenarios) > 1,
            "gate": any(probe.failing or probe.accepted for probe in judged),
            "largest": any(interval for *_, interval in counts),
            "labels": any(effect.top1_drop is not None for *_, effect in impact),
            "control": any(effect.control_flip_rate is not None for *_, effect in impact),
            "gains": any(effect.gains_name for *_, effect in impact),
        },
        controls=controls,
        legend=control_legend(controls),
        on_controls=[
            (probe.name, line) for probe in judged for line in control_sentences(probe.report)
        ],
        rows=first_rows(judged),
        most_rows=ROWS,
        data=packed(judged),
        layers=layers,
        scenarios=scenarios,
        pictures=[(model, figures.distributions(model.judged)) for model in models if drawable],
        survey_pictures=figures.comparisons(survey, rankings) if drawable and survey else [],
        classes=[row for ranking in rankings for row in comparison.ranked_classes(ranking)],
        no_figures="" if drawable else figures.MISSING,
        galleries=galleries,
        masked=masked,
        owned=verdicts,
        origin=origin,
    )
    write_text_atomically(path, text)


def write_report(path: str | Path, report: Report) -> None:
    """Write a page of what a report says of itself: its lines, its figure and its rows."""
    first, *lines = report._lines()
    rows = list(islice(report._rows(), ROWS))
    drawable = figures.can_draw()
    text = render_page(
        "report.html",
        headline=view.Headline(first, ""),
        kind=type(report).__name__,
        date=today(),
        lines=lines,
        picture=figures.report_figure(report, first) if drawable else None,
        no_figures="" if drawable else figures.MISSING,
        columns=list(rows[0]) if rows else [],
        numeric={name for row in rows for name, v in row.items() if isinstance(v, int | float)},
        rows=[[(name, cell_text(value)) for name, value in row.items()] for row in rows],
    )
    write_text_atomically(path, text)
