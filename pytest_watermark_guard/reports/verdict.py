"""What a gate decided, and how it tells it: a message that fits on a screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from pytest_watermark_guard.reports.conclusion import conclude
from pytest_watermark_guard.reports.controls import control_columns, control_legend
from pytest_watermark_guard.reports.drawing import wrapped
from pytest_watermark_guard.reports.known_units import KnownFindings
from pytest_watermark_guard.reports.known_units_text import known_lines
from pytest_watermark_guard.reports.log_lines import inert
from pytest_watermark_guard.reports.names import asked_layer
from pytest_watermark_guard.reports.prediction_limits import (
    NO_LIMITS,
    LimitFinding,
    PredictionLimits,
    held_against,
)
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.text import (
    and_more,
    count,
    decision,
    listed,
    printable,
    reaction,
    unit_table,
)
from pytest_watermark_guard.reports.unit_changes import UnitChange
from pytest_watermark_guard.settings import WARN
from pytest_watermark_guard.statistics.decisions import Answer, ThresholdDecision

WORST = 10
_WIDTH = 80  # of a terminal
_UNIT, _NAME = 1, 28  # the column of units' names in a table, and how wide it is at least
Uncompared = tuple[str, str, str]
"""Layer, scenario, and why they cannot be compared with an earlier release."""
Outcome = Literal["passed", "warned", "failed", "inconclusive", "not checked"]


@dataclass(frozen=True)
class Verdict:
    """What the gate decided, and on what grounds.

    Attributes
    ----------
    report : ProbeReport
    threshold : float
        Units with d at or above it are sensitive.
    failing : tuple of SensitiveUnit
        Sensitive, and neither allowed nor known, worst first.
    allow : mapping of str to str
        The known units, with reasons, that the gate was told of.
    allowed : tuple of (SensitiveUnit, str)
        Sensitive and allowed, with the reason.
    stale : tuple of str
        Entries of `allow` that no sensitive unit needs any more.
    known : KnownFindings
        What the run's record of known units has to say.
    warn : float
        Units with d at or above it, and below `threshold`, are strong reactions.
    strong : tuple of SensitiveUnit
        The strong reactions that are not allowed, strongest first.
    strict : bool
        Whether strong reactions fail the gate.
    inconclusive : str
        What becomes of a gate whose images cannot tell: ``"error"``, ``"fail"`` or ``"pass"``.
    exempt : frozenset of (str, str, int)
        Layer, scenario and index of the units that count for nothing: allowed, or known.
    limits : PredictionLimits
        What the marks may do to predictions; where there are limits, they are what is gated.
    no_worse : bool
        Whether the gate fails by units that rose since an earlier release.
    risen : tuple of UnitChange
        Those of them that are strong, if it does.
    uncompared : tuple of (str, str, str)
        What cannot be compared with that release, if it has to be.
    """

    report: ProbeReport
    threshold: float
    failing: tuple[SensitiveUnit, ...]
    allow: Mapping[str, str] = field(default_factory=dict)
    allowed: tuple[tuple[SensitiveUnit, str], ...] = ()
    stale: tuple[str, ...] = ()
    known: KnownFindings = field(default_factory=KnownFindings)
    warn: float = WARN
    strong: tuple[SensitiveUnit, ...] = ()
    strict: bool = False
    inconclusive: str = "error"
    exempt: frozenset[tuple[str, str, int]] = frozenset()
    limits: PredictionLimits = NO_LIMITS
    no_worse: bool = False
    risen: tuple[UnitChange, ...] = ()
    uncompared: tuple[Uncompared, ...] = ()

    @property
    def terms(self) -> dict[str, Any]:
        """What the gate was asked for: arguments of `judge`."""
        names = "threshold", "warn", "strict", "inconclusive", "no_worse"
        terms = {name: getattr(self, name) for name in names}
        return {**terms, **self.limits._asdict(), "allow": dict(self.allow)}

    @property
    def passed(self) -> bool:
        """Whether the gate passes, with a warning or without."""
        return self.outcome in ("passed", "warned")

    @property
    def outcome(self) -> Outcome:
        """What becomes of the gate.

        ``"failed"``; ``"not checked"``: there is nothing to go by; ``"inconclusive"``: the images
        cannot tell; ``"warned"``: it passes, with strong reactions; or ``"passed"``.
        """
        if self.risen:
            return "failed"
        if self.answer == "unclear" and self.inconclusive != "pass":
            return "failed" if self.inconclusive == "fail" else "inconclusive"
        if self.answer == "reaches":
            return "failed"
        if self.unchecked or self.uncompared:
            return "not checked"
        if self.strong and not self.limits:
            return "failed" if self.strict else "warned"
        return "passed"

    @property
    def undecided(self) -> bool:
        """Whether the model was probed, and the gate cannot tell whether it passes."""
        return self.outcome in ("inconclusive", "not checked")

    @property
    def unchecked(self) -> bool:
        """Whether there is nothing to go by: a layer never changes, or nothing is predicted."""
        return bool(self.report.dead_layers or (self.limits and not self.report.impact))

    @cached_property
    def conclusion(self) -> ThresholdDecision:
        """Whether the images can tell that the largest d reaches the threshold, or stays below."""
        return conclude(self.report, self.threshold, self.exempt)

    @cached_property
    def predictions(self) -> tuple[LimitFinding, ...]:
        """What the marks do to predictions, held against the limits; without limits nothing."""
        return tuple(held_against(self.report, self.limits))

    @property
    def answer(self) -> Answer:
        """Whether what is gated reaches its limit beyond chance: d, or the predictions."""
        if not self.limits:
            # A unit that fails is never overruled by what the others say.
            said = self.conclusion.answer
            return "unclear" if self.failing and said == "below" else said
        answers = {finding.answer for finding in self.predictions}
        return "reaches" if "reaches" in answers else "unclear" if "unclear" in answers else "below"

    def restrict_to(self, layer: str, scenario: str) -> Verdict:
        """Return the part for one layer, with all outputs for "logits", and one scenario."""
        report = self.report

        def inside(unit: SensitiveUnit | UnitChange) -> bool:
            return (asked_layer(unit.layer), unit.scenario) == (layer, scenario)

        scores = {
            k: s for k, s in report.scores.items() if (asked_layer(k[0]), k[1]) == (layer, scenario)
        }
        early = report.early_stop and report.early_stop.restrict_to(layer, scenario)
        impact = {k: v for k, v in report.impact.items() if (layer, k) == ("logits", scenario)}
        return replace(
            self,
            report=replace(report, scores=scores, early_stop=early, impact=impact),
            failing=tuple(filter(inside, self.failing)),
            strong=tuple(filter(inside, self.strong)),
            allowed=tuple(pair for pair in self.allowed if inside(pair[0])),
            risen=tuple(filter(inside, self.risen)),
            uncompared=tuple(
                place
                for place in self.uncompared
                if (asked_layer(place[0]), place[1]) == (layer, scenario)
            ),
            known=self.known.restrict_to(layer, scenario),
        )

    def story(self) -> str:
        """Tell the verdict: one sentence, the worst units, the grounds, what to do."""
        report = self.report
        lines = [self.sentence(), ""]
        shown = self.failing or self.strong
        if shown and not self.passed:
            lines += _table(unit_table(report, shown[:WORST]))
            if len(shown) > WORST:
                hidden = len(shown) - WORST
                lines.append(f"... and {hidden:,} more (--wm-json=FILE lists them all)")
            lines.append("")
        lines += self.accepted_lines()
        lines += (wrapped(line, _WIDTH, indent="  ") for line in self._circumstances())
        if self.answer == "unclear" and not self.passed:
            lines += _MORE_IMAGES
        elif shown and not self.passed:
            lines += _advice(shown, recordable=bool(self.failing))
        return inert("\n".join(lines))

    def _circumstances(self) -> Iterator[str]:
        """Tell how the model was probed, and what its numbers mean."""
        report = self.report
        yield (
            f"Probed: {printable(report.extent)}, seed {report.seed}, {printable(report.device)} "
            f"in {printable(report.precision)}."
        )
        yield f"Preprocessing: {printable(report.preprocessing)}."
        yield "A: how often a marked image scores above a clean one. d = max(A, 1 - A)."
        yield from filter(None, (control_legend(control_columns([report])), decision(report)))
        yield from (f"Note: {printable(note)}." for note in report.notes)

    def sentence(self) -> str:
        """Tell the verdict in a sentence."""
        return f"{printable(self.report.model)} {self._predicate()}: {self.grounds()}."

    def _predicate(self) -> str:
        if self.answer == "reaches":
            return "is watermark-sensitive"
        if self.risen:
            return "is worse than the release before"
        if self.outcome == "inconclusive" or self._fails_unclear:
            return "is inconclusive"
        if self.outcome == "not checked":
            return "could not be checked"
        if self.outcome == "failed":
            return "reacts strongly to watermarks"
        clean = self.outcome == "passed" and self.report.clean and self.answer == "below"
        return "is not watermark-sensitive" if clean else "passes"

    @property
    def _fails_unclear(self) -> bool:
        return self.answer == "unclear" and self.outcome == "failed"

    def grounds(self) -> str:
        """Say why the verdict is what it is: the part of the sentence after the colon."""
        report = self.report
        if self.risen and self.answer != "reaches":
            rose = listed(_numbers(report, self.risen))
            verb = "reacts" if len(self.risen) == 1 else "react"
            return f"{rose} rose beyond chance, and {verb} strongly now (d >= {self.warn:g})"
        if self.outcome == "not checked" and (self.report.dead_layers or self.uncompared):
            return self._missing()
        if self.limits:
            return self._of_predictions()
        if self.answer == "unclear":
            return self._doubt()
        if self.answer == "reaches":
            return f"{_reacting(report, self.failing)} (d >= {self.threshold:g})"
        if self.outcome == "failed":
            return (
                f"{_reacting(report, self.strong)}, and a strict gate fails by strong reactions "
                f"(d >= {self.warn:g})"
            )
        return self._reach()

    def _missing(self) -> str:
        """Say what there is nothing to go by for."""
        if self.report.dead_layers:
            dead = listed(map(printable, self.report.dead_layers))
            return f"no unit of its {dead} ever changes, whatever the image"
        layer, scenario, why = self.uncompared[0]
        place = printable(f"{layer} under {scenario}")
        return (
            f"whether {place}{and_more(self.uncompared, 1)} is no worse than in the release "
            f"before cannot be told ({printable(why)})"
        )

    def _of_predictions(self) -> str:
        """Say what the marks do to predictions, first what decides."""
        if not self.predictions:
            return "it has no logits, and so no predictions that could change"
        deciding = [finding for finding in self.predictions if finding.answer == self.answer]
        if self.answer == "below":
            worst = max(deciding, key=lambda finding: finding.value / max(finding.limit, 1e-9))
            return f"the marks stay within the limits; {worst.sentence()}"
        words = "; ".join(finding.sentence() for finding in deciding)
        if self.answer == "unclear":
            return f"{count(self.report.n_images, 'image')} cannot tell; {words}"
        return words

    def _doubt(self) -> str:
        """Say why the images cannot tell about d, and how many would."""
        needed = self.conclusion.images_needed
        images = count(self.report.n_images, "image")
        enough = "" if needed is None else f"; about {needed:,} would tell"
        what = f"{images} cannot tell whether a unit reaches d = {self.threshold:g}"
        if not self.failing:
            return f"{what}: none does in them, but the largest d may be higher{enough}"
        units = listed(_numbers(self.report, self.failing))
        verb = "reaches" if len(self.failing) == 1 else "reach"
        return f"{what}: {units} {verb} it in them, which may be chance{enough}"

    def _reach(self) -> str:
        """Say how far the units of a model that passes reach."""
        nothing = "nothing else" if self.allowed or self.known.passed else "nothing"
        words = f"{nothing} reaches {self.threshold:g}"
        if self.strong:
            verb = "reacts" if len(self.strong) == 1 else "react"
            words += f", but {listed(_numbers(self.report, self.strong))} {verb} strongly"
            words += f" (d >= {self.warn:g})"
        return (
            words if self.strongest is None else f"{words}; strongest: {reaction(self.strongest)}"
        )

    @cached_property
    def strongest(self) -> SensitiveUnit | None:
        """The unit of the largest d that is not exempt; None if all are."""
        units = []
        for scores in self.report:
            place = scores.layer, scores.scenario
            ranked = (i for i in scores.ranking() if (*place, int(i)) not in self.exempt)
            units += [scores.unit(index) for index in islice(ranked, 1)]
        return max(units, key=lambda unit: unit.differentiability, default=None)

    def accepted_lines(self) -> Iterator[str]:
        """Tell which units were allowed, known or risen, and which entries nothing needs now."""
        for unit, reason in self.allowed[:WORST]:
            yield f"allowed: {reaction(unit)}: {printable(reason, 60)}"
        if len(self.allowed) > WORST:
            yield f"allowed: ... and {len(self.allowed) - WORST:,} more"
        if self.stale:
            shown = ", ".join(printable(entry, 30) for entry in self.stale[:WORST])
            yield f"no longer needed in allow: {shown}{and_more(self.stale, WORST)}"
        yield from known_lines(self.known)
        for change in self.risen[:WORST]:
            yield printable(
                f"rose: {change.layer} {change.label}, {change.scenario}, d {change.d_after:.3f} "
                f"(was {change.d_before:.3f})"
            )
        if len(self.risen) > WORST:
            yield f"rose: ... and {len(self.risen) - WORST:,} more"


def _reacting(report: ProbeReport, units: Sequence[SensitiveUnit]) -> str:
    scenarios = listed(map(printable, dict.fromkeys(unit.scenario for unit in units)))
    verb = "reacts" if len(units) == 1 else "react"
    return f"{listed(_numbers(report, units))} {verb} to {scenarios} marks"


def _numbers(
    report: ProbeReport, units: Sequence[SensitiveUnit] | Sequence[UnitChange]
) -> Iterator[str]:
    """Give, for each layer of some units, how many of its units they are."""
    for layer in dict.fromkeys(unit.layer for unit in units):
        indices = {unit.index for unit in units if unit.layer == layer}
        total = next(len(scores.names) for scores in report if scores.layer == layer)
        noun = "logit" if layer == "logits" else "feature" if layer == "features" else "unit"
        place = "" if layer in ("logits", "features") else f" in {printable(layer)}"
        yield f"{len(indices):,} of {count(total, noun)}{place}"


_MORE_IMAGES = (
    "What to do: probe with more images (--wm-images=FOLDER, --wm-max-images), of which no two",
    "are nearly the same; or say what becomes of such a gate: --wm-inconclusive=pass or fail.",
)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    # Names are cut only where the lines would be wider than a terminal.
    spare = _WIDTH - sum(widths) - 2 * (len(widths) - 1)
    widths[_UNIT] = max(min(widths[_UNIT], _NAME), widths[_UNIT] + min(0, spare))
    return [
        "  ".join(
            set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _advice(units: Sequence[SensitiveUnit], recordable: bool) -> list[str]:
    entry = f"{units[0].layer}:{printable(units[0].name)}"
    classes = any(unit.layer == "logits" for unit in units)
    where = "of these classes" if classes else "that excite these units most"
    end = ";" if recordable else "."
    lines = [
        f"What to do: look for such marks in the training images {where},",
        "and train again without them; or accept a known unit, with a reason:",
        f"  allow={{{entry!r}: 'why'}}, --wm-allow={entry + '=why'!r} or wm_allow{end}",
    ]
    # The record is of units that reach the threshold.
    return [*lines, "or put all of them on record as they are: --wm-update-known"][: 3 + recordable]
