"""Verifications of ownership on the page: each with a verdict of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pytest_watermark_guard.errors import OwnershipError, SettingsError
from pytest_watermark_guard.reports.ownership import ALPHA, OwnershipReport
from pytest_watermark_guard.reports.text import count


class OwnershipVerdict(NamedTuple):
    """What one verification comes to."""

    report: OwnershipReport
    word: str
    state: str  # a style of the page
    words: str  # why


def ownership_verdict(report: OwnershipReport) -> OwnershipVerdict:
    """Say whether a model carries the key, at the usual level."""
    pairs = f"{report.agreeing} of {report.pairs} pairs agree with the key"
    grounds = f"{pairs}; p = {report.p_value:.3g}, against a level of {ALPHA:g}."
    try:
        carries = report.carries()
    except (OwnershipError, SettingsError) as error:
        return OwnershipVerdict(report, "no verdict", "unclear", f"{error}.")
    if carries:
        word = "carries the key" if report.is_evidence else "carries the key (own check)"
        return OwnershipVerdict(report, word, "good", grounds)
    return OwnershipVerdict(report, "not shown to carry the key", "unclear", grounds)


def ownership_headline(verdicts: Sequence[OwnershipVerdict]) -> tuple[str, str]:
    """Return the words and the state of a page that is of ownership alone."""
    if len(verdicts) == 1:
        return f"Ownership: {verdicts[0].word}", verdicts[0].state
    carrying = sum(verdict.state == "good" for verdict in verdicts)
    states = {verdict.state for verdict in verdicts}
    state = states.pop() if len(states) == 1 else "unclear"
    models = count(len(verdicts), "verification")
    return (
        f"Ownership: {carrying} of {models} {'shows' if carrying == 1 else 'show'} the key",
        state,
    )
