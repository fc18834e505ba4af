"""Gates as GitHub's workflow commands: shown on the run's page, and at the line of a test.

The format and what must be escaped in it is that of GitHub's toolkit,
https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pytest_watermark_guard.reports.text import printable
from pytest_watermark_guard.reports.verdict import Verdict

MOST = 10
"""GitHub shows no more errors, and no more warnings, of one step."""
WORST = 3
SENSITIVE = "Watermark-sensitive model"
STRONG = "Strong reactions to watermarks"
NOT_PROBED = "Model that could not be probed"
UNDECIDED = "Gate that could not decide"
_IN_TEXT = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_IN_PROPERTY = _IN_TEXT | str.maketrans({":": "%3A", ",": "%2C"})


def gate_failure(verdict: Verdict) -> str:
    """Tell a failed gate in a few lines."""
    units = verdict.failing or verdict.strong
    lines = [verdict.sentence()]
    lines += [
        printable(f"{unit.layer} {unit.label}, {unit.scenario}: d {unit.differentiability:.3f}")
        for unit in units[:WORST]
    ]
    if len(units) > WORST:
        lines.append(f"... and {len(units) - WORST:,} more")
    return "\n".join(lines)


def commands(
    level: Literal["error", "warning"],
    findings: Sequence[tuple[str, str, tuple[str, int] | None]],
    workspace: str,
) -> Iterator[str]:
    """Return the lines to print for findings: title, text, and file and line if it has them.

    GitHub wants files relative to the checkout `workspace`, and knows no others.
    """
    for title, text, place in findings[:MOST]:
        properties = {}
        if place is not None and workspace and Path(place[0]).is_relative_to(workspace):
            file = Path(place[0]).relative_to(workspace).as_posix()
            properties = {"file": file, "line": str(place[1])}
        properties["title"] = title
        joined = ",".join(f"{k}={v.translate(_IN_PROPERTY)}" for k, v in properties.items())
        yield f"::{level} {joined}::{text.translate(_IN_TEXT)}"
    if len(findings) > MOST:
        yield f"watermark guard: ... and {len(findings) - MOST:,} more of them"
