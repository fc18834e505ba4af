"""Warnings of a gate that passes: strong reactions, and what it stands on."""

from __future__ import annotations

import warnings

from pytest_watermark_guard.errors import AssumptionWarning, StrongReactionWarning
from pytest_watermark_guard.reports.text import printable
from pytest_watermark_guard.reports.verdict import Verdict


def warn_of(verdict: Verdict, stacklevel: int) -> None:
    """Warn of a passed gate's strong reactions and assumptions, at a caller's line.

    Parameters
    ----------
    verdict : Verdict
    stacklevel : int
        As for `warnings.warn`, counted from whoever calls this function.
    """
    model = printable(verdict.report.model)
    if verdict.outcome == "warned":
        warnings.warn(StrongReactionWarning(verdict.sentence()), stacklevel=stacklevel + 1)
    for assumption in verdict.report.assumptions:
        warnings.warn(
            AssumptionWarning(f"{model}: {printable(assumption)}"), stacklevel=stacklevel + 1
        )
