"""The page itself: one file, no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_watermark_guard.caching.files import write_text_atomically
from pytest_watermark_guard.reports.controls import (
    control_columns,
    control_legend,
    control_sentences,
)
from pytest_watermark_guard.reports.html import comparison, figures, view
from pytest_watermark_guard.reports.html.examples import galleries
from pytest_watermark_guard.reports.html.origin import Origin
from pytest_watermark_guard.reports.html.units import first_rows, packed
from pytest_watermark_guard.reports.masked import Masked
from pytest_watermark_guard.reports.ownership import OwnershipReport
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import TIERS
from pytest_watermark_guard.reports.text import printable
from pytest_watermark_guard.reports.verdict import Verdict
from pytest_watermark_guard.version import __version__

_PACKAGE = "pytest_watermark_guard.reports.html"


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
        Where example images are, see `galleries`.
    changes : sequence of str, optional
        What changed since an earlier release, in sentences.
    interrupted : bool, default False
        Whether the run ended before all of its tests had.
    """
    failures = failures or {}
    judged = view.judged(entries, threshold)
    models = view.models(entries, judged)
    survey = comparison.survey_of(judged)
    rankings = list(comparison.rankings(survey)) if survey else []
    drawable = figures.can_draw()
    controls = control_columns(probe.report for probe in judged)
    impact = [(probe, *item) for probe in judged for item in probe.report.impact.items()]
    style, script = (
        Markup(files(_PACKAGE).joinpath("templates", name).read_text("utf-8"))
        for name in ("page.css", "page.js")
    )
    template = _environment().get_template("page.html")
    text = template.render(
        headline=view.headline(models, failures, len(owned)),
        models=models,
        failures=failures,
        changes=changes,
        interrupted=interrupted,
        counts=list(view.counts(judged)),
        tiers=TIERS,
        impact=impact,
        labelled=any(effect.top1_drop is not None for *_, effect in impact),
        controlled=any(effect.control_flip_rate is not None for *_, effect in impact),
        controls=controls,
        legend=control_legend(controls),
        on_controls=[
            (probe.name, line) for probe in judged for line in control_sentences(probe.report)
        ],
        rows=first_rows(judged),
        data=packed(judged),
        layers=list(dict.fromkeys(layer for probe in judged for layer in probe.report.layers)),
        scenarios=list(dict.fromkeys(name for probe in judged for name in probe.report.scenarios)),
        pictures=[(model, figures.distributions(model.judged)) for model in models if drawable],
        comparisons=figures.comparisons(survey) if drawable and survey else [],
        classes=[row for ranking in rankings for row in comparison.ranked_classes(ranking)],
        cautions=comparison.cautions(survey) if survey else [],
        no_figures="" if drawable else figures.MISSING,
        galleries=galleries([probe.report for probe in judged], images, by_name),
        masked=masked,
        owned=owned,
        origin=origin,
        version=__version__,
        style=style,
        style_hash=_hash(style),
        script=script,
        script_hash=_hash(script),
    )
    write_text_atomically(path, text)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control characters and turns of writing direction are shown, not obeyed.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["percent"] = lambda share: "-" if share is None else f"{share:.1%}"
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _hash(text: str) -> str:
    """Name a style or script in the page's content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
