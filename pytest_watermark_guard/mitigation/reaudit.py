"""Whether a mask helped, or only moved the problem."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from pytest_watermark_guard.errors import MaskError, SettingsError
from pytest_watermark_guard.mitigation.apply import applied_mask, unmasked
from pytest_watermark_guard.models.state import unwrapped
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.gate import judge
from pytest_watermark_guard.probing.probe import probe
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.text import count, listed, printable
from pytest_watermark_guard.reports.verdict import Verdict

_WIDTH = 88  # of the story's lines


@dataclass(frozen=True)
class Change:
    """The most differentiable unit of one layer under one scenario, without and with the mask."""

    before: SensitiveUnit
    after: SensitiveUnit  # may be another unit
    threshold: float  # the gate's

    @property
    def layer(self) -> str:
        """The layer."""
        return self.after.layer

    @property
    def scenario(self) -> str:
        """The scenario."""
        return self.after.scenario

    @property
    def rose(self) -> bool:
        """Whether the largest d is higher with the mask, and that matters.

        It does where the 95 % intervals of the two units do not overlap, and where it takes the
        layer over the threshold.
        """
        before, after = self.before.differentiability, self.after.differentiability
        crossed = before < self.threshold <= after
        return after > before and (crossed or _interval(self.before)[1] < _interval(self.after)[0])


@dataclass(frozen=True, eq=False)
class Reaudit:
    """A masked model beside itself with the mask off.

    Attributes
    ----------
    mask : str
        What was masked, in the mask's own words.
    before, after : ProbeReport
        With the mask off and on: the same head, images and marks.
    verdict : Verdict
        The gate's, on the masked model.
    changes : tuple of Change
        One for each layer and scenario.
    """

    mask: str
    before: ProbeReport
    after: ProbeReport
    verdict: Verdict
    changes: tuple[Change, ...]

    @property
    def moved(self) -> tuple[Change, ...]:
        """Where the mask made it worse, see `Change.rose`; in any layer, for any scenario."""
        return tuple(change for change in self.changes if change.rose)

    @property
    def passed(self) -> bool:
        """Whether the masked model passes the gate, and the mask made nothing worse."""
        return self.verdict.passed and not self.moved

    def story(self) -> str:
        """Tell it in plain sentences."""
        return "\n".join(_story(self))


def reaudit(model: nn.Module, threshold: float | None = None, **arguments: Any) -> Reaudit:
    """Probe a masked model, with the mask off and on, and hold the gate against it.

    Parameters
    ----------
    model : torch.nn.Module
        One that carries a mask (see `apply_mask`), with the head that is to be judged. It comes
        back as it was.
    threshold : float, optional
        The gate's on d, in (0.5, 1]; default 0.95.
    **arguments
        As for `probe`; ask for the scenarios that were not masked too, which is the default. All
        images are used.

    Returns
    -------
    Reaudit

    Raises
    ------
    MaskError
        If the model carries no mask.
    SettingsError
        If the threshold cannot be used, or an argument would end a probe early.
    WatermarkGuardError
        As `probe`.
    """
    mask = applied_mask(model)
    if mask is None:
        raise MaskError(
            f"{type(unwrapped(model)).__name__} carries no mask, so there is nothing to compare: "
            "apply_mask first, or gate it as it is"
        )
    if arguments.get("stop_at") is not None:
        raise SettingsError("stop_at: both probes are of all images, or they cannot be compared")
    settings = current_run().settings.override(threshold=threshold, allow=arguments.get("allow"))
    name = arguments.pop("name", None) or type(unwrapped(model)).__name__
    with unmasked(model):
        before = probe(model, name=f"{name} without its mask", **arguments)
    after = probe(model, name=name, **arguments)
    verdict = judge(after, settings.threshold, settings.allow)
    changes = tuple(
        Change(before[key].strongest(), after[key].strongest(), settings.threshold)
        for key in after.scores
    )
    return Reaudit(mask.description, before, after, verdict, changes)


def _interval(unit: SensitiveUnit) -> tuple[float, float]:
    """Return the 95 % interval of a unit's d, from that of its A on the same side of 0.5."""
    return (unit.low, unit.high) if unit.fires else (1 - unit.high, 1 - unit.low)


def _story(result: Reaudit) -> Iterator[str]:
    after, verdict = result.after, result.verdict
    yield from _wrapped(f"{printable(after.model)}, masked: {printable(result.mask)}.")
    yield ""
    for change in result.changes:
        low, high = change.before.differentiability, change.after.differentiability
        was = f"{low:.3f} ({printable(change.before.label, 28)})"
        now = f"{high:.3f} ({printable(change.after.label, 28)})"
        verb = "falls" if high < low else "rises"
        outcome = f"stays at {now}" if high == low else f"{verb} from {was} to {now}"
        where = f"{printable(change.layer)}, {printable(change.scenario)}"
        yield from _wrapped(f"{where}: the largest d {outcome}.")
    yield ""
    if result.moved:
        scenarios = dict.fromkeys(change.scenario for change in result.moved)
        layers = dict.fromkeys(change.layer for change in result.moved)
        yield from _wrapped(
            f"The mask moved the problem: {listed(map(printable, layers))} react more to "
            f"{listed(map(printable, scenarios))} marks than without it. Mask for these scenarios "
            "too, or erase them (FeatureErasure), and train the head again."
        )
    else:
        yield "Nothing reacts more than without the mask, beyond chance."
    failing = len({(unit.layer, unit.index) for unit in verdict.failing})
    if verdict.answer == "unclear":
        yield from _wrapped(verdict.sentence())
    elif failing:
        worst = verdict.failing[0]
        yield from _wrapped(
            f"The gate fails: {count(failing, 'unit')} with d >= {verdict.threshold:g}, the worst "
            f"is {printable(worst.layer)} {printable(worst.label, 28)} under "
            f"{printable(worst.scenario)} marks."
        )
    elif verdict.unchecked:
        yield from _wrapped(verdict.sentence())
    else:
        allowed = " outside the allowed ones" if verdict.allowed else ""
        yield f"The gate passes: no unit{allowed} reaches d = {verdict.threshold:g}."


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
