"""Every error the package raises on purpose, one type per cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def did_you_mean(
    name: str, known: Iterable[str], most: int = 1, shown: Callable[[str], str] = repr
) -> str:
    """Return ``; did you mean 'x'?`` for a message about an unknown name, or nothing."""
    from difflib import get_close_matches

    by_lower = {other.lower(): other for other in known}
    near = get_close_matches(name.lower(), by_lower, n=most)
    words = " or ".join(shown(by_lower[other]) for other in near)
    return f"; did you mean {words}?" if near else ""


class WatermarkGuardError(Exception):
    """Base of all errors below: the probe could not be made, so there is no verdict."""


class SettingsError(WatermarkGuardError, ValueError):
    """A threshold, device, precision, count or seed that cannot be used."""


class ScenarioError(WatermarkGuardError, ValueError):
    """An unknown scenario, or one that cannot be drawn (glyphs missing, too large, no shaping)."""


class ImagesError(WatermarkGuardError, ValueError):
    """Baseline or marked images that are missing, unreadable, or of a shape that cannot be used."""


class ModelSpecError(WatermarkGuardError, ValueError):
    """A model spec that cannot be parsed, or whose model or weights cannot be loaded."""


class PreprocessingError(WatermarkGuardError, ValueError):
    """A ``preprocess`` argument that cannot be understood or that fails on a batch."""


class LayerError(WatermarkGuardError, ValueError):
    """A layer that cannot be found, or whose output cannot be read as units."""


class ModelError(WatermarkGuardError, RuntimeError):
    """A model that raises when it is run; its error is the cause."""


class NonFiniteActivationsError(WatermarkGuardError, ArithmeticError):
    """The model returned NaN or an infinity, which no ranking can order."""


class ReportError(WatermarkGuardError, ValueError):
    """A report file that cannot be read."""


class KnownUnitsError(WatermarkGuardError, ValueError):
    """A file of known units that cannot be read or written."""


class EngineError(WatermarkGuardError, RuntimeError):
    """Other processes that cannot be had, reached or sent something, or that were lost."""


class MaskError(WatermarkGuardError, ValueError):
    """A mask that cannot be made, read, or applied to this model."""


class OwnershipError(WatermarkGuardError, ValueError):
    """An ownership key that cannot be made, read, embedded, or tried on this model."""


class OwnershipMismatchError(AssertionError):
    """A model that should carry an ownership watermark and does not, or the other way round.

    Attributes
    ----------
    report : pytest_watermark_guard.ownership.OwnershipReport
        What was measured.
    """

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class NotCheckedError(WatermarkGuardError):
    """A gate that cannot tell: a layer never changes, or the images are too few.

    Attributes
    ----------
    verdict : pytest_watermark_guard.reports.verdict.Verdict
        The report and the threshold.
    """

    def __init__(self, message: str, verdict: object = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class WatermarkSensitivityError(AssertionError):
    """The verdict of a failed gate: at least one unit is too sensitive.

    Attributes
    ----------
    verdict : pytest_watermark_guard.reports.verdict.Verdict
        The report, the threshold and the units that failed.
    """

    def __init__(self, message: str, verdict: object = None) -> None:
        super().__init__(message)
        self.verdict = verdict


class StrongReactionWarning(UserWarning):
    """A gate passes, and units of its model react strongly all the same."""


class AssumptionWarning(UserWarning):
    """A gate passes on something that was assumed of the model, or in doubt; it says what."""
