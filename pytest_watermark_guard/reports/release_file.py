"""The probes of an earlier release, from the JSON file that it left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_watermark_guard.errors import ReportError
from pytest_watermark_guard.reports.documents import DocumentFormat, parse_json
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.text import listed

RUN = DocumentFormat("run", "run")
_RELEASE = DocumentFormat(
    "release", "probes", advice="name a file that ProbeReport.save or --wm-json wrote"
)


def read_release(path: str | Path) -> tuple[ProbeReport, ...]:
    """Return the probes in a file of `ProbeReport.save` or ``--wm-json``.

    Raises
    ------
    ReportError
        If it cannot be read, is something else, or holds no probe.
    """
    with _RELEASE.reading(path):
        data = parse_json(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(data, dict):
            raise ReportError("it is no JSON object")
        entries = [data]
        if data.get("format") == RUN.name:
            RUN.check(data)
            entries = data["reports"]
        reports = tuple(map(ProbeReport.from_dict, entries))
        if not reports:
            raise ReportError("it is of a run in which nothing was probed")
    return reports


def fitting(
    reports: Sequence[ProbeReport], model: str | None, other: ProbeReport | None
) -> ProbeReport:
    """Return the one of a file's probes that is of a model: the only one, or that of its name.

    Of several of one name it is the one that was probed most like `other`.

    Raises
    ------
    ReportError
        If there is no such probe, or no one of them fits best.
    """
    if len(reports) == 1:
        return reports[0]
    named = [report for report in reports if report.model == model]
    if not named:
        names = listed(sorted({repr(report.model) for report in reports}))
        asked = "say which by model=" if model is None else f"none is of {model!r}"
        raise ReportError(f"it holds probes of {names}: {asked}")
    likeness = [_likeness(report, other) for report in named]
    if likeness.count(max(likeness)) > 1:
        raise ReportError(
            f"it holds {len(named)} probes of {model!r}, and which of them is meant cannot be "
            "told; give each model a name= of its own"
        )
    return named[likeness.index(max(likeness))]


def _likeness(report: ProbeReport, other: ProbeReport | None) -> tuple[int, bool, bool]:
    if other is None:
        return 0, False, False
    shared = len(report.scores.keys() & other.scores.keys())
    return shared, report.seed == other.seed, report.n_images == other.n_images
