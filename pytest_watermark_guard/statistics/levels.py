"""Levels of tests: what is none, and what a test of so many pairs cannot reach."""

from __future__ import annotations

from numbers import Real

from pytest_watermark_guard.errors import SettingsError


def check_level(name: str, level: float) -> None:
    """Raise `SettingsError` for what is no level of a test."""
    if not isinstance(level, Real) or not 0 < level < 1:
        raise SettingsError(f"{name} must be in (0, 1), got {level!r}")


def check_reachable(alpha: float, pairs: int, least: float) -> None:
    """Raise `SettingsError` for a level that no result of so many pairs can reach."""
    if least > alpha:
        raise SettingsError(
            f"alpha {alpha:g} cannot be reached with {pairs} pairs, whose p-value is at least "
            f"{least:.3g}: take a larger alpha, or make a key with more pairs"
        )
