"""A run's probes in Markdown, for the summary of a step of GitHub Actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from string import punctuation

from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.text import decision, printable, unit_table
from pytest_watermark_guard.reports.verdict import Verdict

MOST_MODELS = 50  # GitHub takes one MiB
WORST = 10
_WIDTH = 60


def step_summary(
    entries: Sequence[tuple[ProbeReport, Sequence[Verdict]]],
    threshold: float,
    failures: Mapping[str, str],
    changes: Sequence[str] = (),
    interrupted: bool = False,
) -> str:
    """Tell every probe: its gates' verdicts, a table of layers and scenarios, the worst units.

    `threshold` is for probes that no gate used; `failures` says by model why it could not be
    probed, and `changes` what changed since an earlier release. Text from outside, such as names
    of classes, stays text in the Markdown.
    """
    lines = ["## Watermark sensitivity", ""]
    if interrupted:
        lines += ["**The run was interrupted: this is not all of it.**", ""]
    for model, reason in failures.items():
        lines += [f"### {_text(model)}: could not be probed", ""]
        lines += _paragraph(" ".join(reason.split()))
    if changes:
        lines += ["### Since the earlier release", ""]
    for change in changes[:MOST_MODELS]:
        lines += _paragraph(change)
    if len(changes) > MOST_MODELS:
        lines += [f"... and {len(changes) - MOST_MODELS:,} more", ""]
    for report, verdicts in entries[:MOST_MODELS]:
        lines += _report(report, verdicts, threshold)
    if len(entries) > MOST_MODELS:
        lines += [f"... and {len(entries) - MOST_MODELS:,} more probes", ""]
    return "\n".join(lines) + "\n"


def _report(report: ProbeReport, verdicts: Sequence[Verdict], threshold: float) -> Iterator[str]:
    words: list[str] = [verdict.outcome for verdict in verdicts] or ["probed"]
    yield f"### {_text(report.model)}: {', '.join(words)}"
    yield ""
    for verdict in verdicts:
        yield from _paragraph(verdict.sentence())
    lowest = min((verdict.threshold for verdict in verdicts), default=threshold)
    yield from _table(
        ("layer", "scenario", "units", f"d >= {lowest:g}", "max d", "unit"),
        [
            (
                scores.layer,
                scores.scenario,
                f"{len(scores.names):,}",
                f"{scores.count(lowest):,}",
                f"{scores.differentiability.max():.3f}",
                scores.strongest().label,
            )
            for scores in report
        ],
    )
    for verdict in verdicts:
        units = verdict.failing or verdict.strong
        if units:
            header, *rows = unit_table(report, units[:WORST])
            yield from _table(header, rows)
        if len(units) > WORST:
            yield from _paragraph(f"... and {len(units) - WORST:,} more")
        for line in verdict.accepted_lines():
            yield from _paragraph(line)
    yield from _paragraph(
        f"Probed: {report.extent}, seed {report.seed}, {report.device} in {report.precision}."
    )
    if images_taken := decision(report):
        yield from _paragraph(images_taken)
    for note in report.notes:
        yield from _paragraph(f"Note: {note}.")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(map(_text, header))
    yield _row("---" for _ in header)
    for row in rows:
        yield _row(map(_text, row))
    yield ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _paragraph(text: str) -> Iterator[str]:
    yield _text(text, None)
    yield ""


def _text(text: str, width: int | None = _WIDTH) -> str:
    """Make text from outside text in Markdown: every sign that could mean something is spelled."""
    return "".join(f"&#{ord(c)};" if c in punctuation else c for c in printable(text, width))
