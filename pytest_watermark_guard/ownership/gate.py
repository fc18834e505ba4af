"""Ownership as a test: what is released carries the mark, and what is not ours does not."""

from __future__ import annotations

from typing import Any

from torch import nn

from pytest_watermark_guard.errors import OwnershipMismatchError
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.verification import Predictor, verify, verify_classifier
from pytest_watermark_guard.reports.ownership import ALPHA, OwnershipReport


def assert_carries_watermark(
    model: nn.Module | str | Predictor,
    key: OwnershipKey,
    alpha: float = ALPHA,
    **arguments: Any,
) -> OwnershipReport:
    """Fail unless a model carries a key.

    Parameters
    ----------
    model : Module, str or callable
        A function from pixels to predictions is asked as by `verify_classifier`, a model or model
        spec as by `verify`.
    key : OwnershipKey
    alpha : float, default 1e-3
        A model that was made without the key passes with at most this chance.
    **arguments
        As for `verify`: ``images``, ``nulls``, ``n_images``, ``pairs``, ``preprocess``, ``name``,
        ``device``; for a function ``stop_at`` and ``clean_encoder`` too.

    Returns
    -------
    OwnershipReport

    Raises
    ------
    OwnershipMismatchError
        An `AssertionError` with the p-value.
    WatermarkGuardError
        If there can be no verdict; see `verify` and `OwnershipReport.carries`.
    """
    __tracebackhide__ = True
    report = _verified(model, key, **arguments)
    if not report.carries(alpha):
        raise OwnershipMismatchError(
            f"{report.model} does not carry the key {report.key[:16]}: {_evidence(report, alpha)}."
            "\n\nIs it the output of embed(), with its weights loaded and the key of that encoder? "
            "Training after embedding weakens the mark: embed last, or with a larger "
            "Objective.apart.",
            report,
        )
    return report


def assert_no_watermark(
    model: nn.Module | str | Predictor,
    key: OwnershipKey,
    alpha: float = ALPHA,
    **arguments: Any,
) -> OwnershipReport:
    """Fail if a model carries a key.

    Parameters
    ----------
    model, key, **arguments
        As for `assert_carries_watermark`.
    alpha : float, default 1e-3
        A model that was made without the key fails with at most this chance.

    Returns
    -------
    OwnershipReport

    Raises
    ------
    OwnershipMismatchError
        An `AssertionError` with the p-value.
    WatermarkGuardError
        If there can be no verdict; see `verify` and `OwnershipReport.carries`.
    """
    __tracebackhide__ = True
    report = _verified(model, key, **arguments)
    if report.carries(alpha):
        raise OwnershipMismatchError(
            f"{report.model} carries the key {report.key[:16]}: {_evidence(report, alpha)}."
            "\n\nIt was made from an encoder with this key: release another one, or, if it is "
            "meant to carry the key, use assert_carries_watermark.",
            report,
        )
    return report


def _verified(model: Any, key: OwnershipKey, **arguments: Any) -> OwnershipReport:
    if isinstance(model, str | nn.Module):
        return verify(model, key, **arguments)
    return verify_classifier(model, key, **arguments)


def _evidence(report: OwnershipReport, alpha: float) -> str:
    return (
        f"p = {report.p_value:.3g} (a mark gives at most {alpha:g}). Of the two patterns in "
        f"a pair, the one that the key chose had the stronger effect in {report.agreeing} of "
        f"{report.pairs} pairs, on average by {report.effect:+.3f}"
    )
