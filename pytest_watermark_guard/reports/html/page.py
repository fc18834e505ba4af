"""The page itself: one file, no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_watermark_guard.caching.files import write_text_atomically
from pytest_watermark_guard.reports.html import comparison, figures, view
from pytest_watermark_guard.reports.html.examples import galleries
from pytest_watermark_guard.reports.html.origin import Origin
from pytest_watermark_guard.reports.html.units import first_rows, packed
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import TIERS
from pytest_watermark_guard.reports.text import printable
from pytest_watermark_guard.reports.verdict import Verdict
from pytest_watermark_guard.version import __version__

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.masked import Masked
    from pytest_watermark_guard.reports.ownership import OwnershipReport

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
    """
    text = render(
        entries,
        threshold,
        masked=masked,
        owned=owned,
        failures=failures,
        origin=origin,
        images=images,
        by_name=by_name,
    )
    write_text_atomically(path, text)


def render(
    entries: Sequence[tuple[ProbeReport, Sequence[Verdict]]],
    threshold: float = 0.95,
    *,
    masked: Sequence[Masked] = (),
    owned: Sequence[OwnershipReport] = (),
    failures: Mapping[str, str] | None = None,
    origin: Origin | None = None,
    images: Any = None,
    by_name: bool = False,
) -> str:
    """Return the page that `write_html` writes."""
    failures = failures or {}
    judged = view.judged(entries, threshold)
    models = view.models(entries, judged)
    drawable = figures.can_draw()
    pictures = [
        (model, list(figures.distributions(model.judged.report, model.judged.threshold)))
        for model in models
        if drawable
    ]
    survey = comparison.survey_of(judged)
    ranked = [] if survey is None else list(comparison.rankings(survey))
    style, script = (
        Markup(files(_PACKAGE).joinpath("templates", name).read_text("utf-8"))
        for name in ("page.css", "page.js")
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            headline=view.headline(models, failures, len(owned)),
            models=models,
            failures=failures,
            counts=list(view.counts(judged)),
            tiers=TIERS,
            impact=[(j, *i) for j in judged for i in j.report.impact.items()],
            labelled=any(i.top1_drop is not None for j in judged for i in j.report.impact.values()),
            controlled=any(j.report.controls for j in judged),
            rows=first_rows(judged),
            data=packed(judged),
            layers=list(dict.fromkeys(layer for j in judged for layer in j.report.layers)),
            scenarios=list(dict.fromkeys(name for j in judged for name in j.report.scenarios)),
            pictures=pictures,
            comparisons=list(figures.comparisons(survey)) if drawable and survey else [],
            classes=[one for found in ranked for one in comparison.ranked_classes(found)],
            cautions=[] if survey is None else comparison.cautions(survey),
            no_figures="" if drawable else figures.MISSING,
            galleries=galleries([j.report for j in judged], images, by_name),
            masked=masked,
            owned=owned,
            origin=origin,
            version=__version__,
            style=style,
            style_hash=_hash(style),
            script=script,
            script_hash=_hash(script),
        )
    )


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
