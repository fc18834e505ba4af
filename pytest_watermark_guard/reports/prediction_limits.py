"""A gate by predictions: how many the marks may change, and how much accuracy they may cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.reports.impact import Interval
from pytest_watermark_guard.reports.probe import ProbeReport


class PredictionLimits(NamedTuple):
    """What a gate lets marks do to predictions; None: anything.

    Attributes
    ----------
    max_flips : float or None
        Share of the images whose prediction the mark changes, beyond the share that blobs of as
        much ink change.
    max_drop : float or None
        Top-1 accuracy, in points of a hundred.
    """

    max_flips: float | None = None
    max_drop: float | None = None

    def __bool__(self) -> bool:
        return self.max_flips is not None or self.max_drop is not None


NO_LIMITS = PredictionLimits()


class LimitFinding(NamedTuple):
    """What one scenario does to predictions, held against one limit; shares, not points."""

    scenario: str
    kind: Literal["flips", "drop"]
    value: float
    interval: Interval
    limit: float

    @property
    def answer(self) -> Literal["reaches", "below", "unclear"]:
        """Whether the limit is exceeded beyond chance, kept beyond chance, or neither."""
        low, high = self.interval
        return "reaches" if low > self.limit else "below" if high <= self.limit else "unclear"

    def sentence(self) -> str:
        """Say what was found, and what is allowed."""
        low, high = self.interval
        if self.kind == "drop":
            verb, points = "cost", 100
            what = f"{points * self.value:.1f} points of top-1 accuracy"
            numbers = f"{points * low:.1f} to {points * high:.1f}; at most {points * self.limit:g}"
        else:
            verb = "change"
            what = f"{self.value:.1%} of the predictions beyond blobs of ink"
            numbers = f"{low:.1%} to {high:.1%}; at most {self.limit:.4g}"
        return f"{self.scenario} marks {verb} {what} ({numbers})"


def held_against(report: ProbeReport, limits: PredictionLimits) -> Iterator[LimitFinding]:
    """Hold every scenario's impact against the limits.

    Raises
    ------
    SettingsError
        If the report has not what a limit is on.
    """
    for scenario, impact in report.impact.items():
        if limits.max_flips is not None:
            beyond, interval = impact.flips_beyond_blobs, impact.beyond_blobs_interval
            if beyond is None or interval is None:
                raise SettingsError(
                    f"max_flips: {report.model} was probed without blobs under {scenario}, and "
                    "without them nothing tells what the text does from what any ink does; probe "
                    'with control="blobs"'
                )
            yield LimitFinding(scenario, "flips", beyond, interval, limits.max_flips)
        if limits.max_drop is not None:
            drop, interval = impact.top1_drop, impact.top1_drop_interval
            if drop is None or interval is None:
                raise SettingsError(
                    f"max_drop: no label is known of the images that {report.model} was probed "
                    "with; pass labels=, or sort the images in folders called like the classes"
                )
            yield LimitFinding(scenario, "drop", drop, interval, limits.max_drop / 100)
