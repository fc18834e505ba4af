"""What a gate decided, and how it tells it: a message that fits on a screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from pytest_watermark_guard.reports.conclusion import Conclusion, conclude
from pytest_watermark_guard.reports.known_units import KnownFindings, asked_layer
from pytest_watermark_guard.reports.known_units_text import known_lines
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.text import (
    and_more,
    count,
    decision,
    extent,
    listed,
    printable,
    reaction,
    unit_table,
)
from pytest_watermark_guard.reports.unit_changes import UnitChange
from pytest_watermark_guard.settings import WARN

WORST = 10
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
    no_worse: bool = False
    risen: tuple[UnitChange, ...] = ()
    uncompared: tuple[Uncompared, ...] = ()

    @property
    def terms(self) -> dict[str, Any]:
        """What the gate was asked for: arguments of `judge`."""
        names = "threshold", "warn", "strict", "inconclusive", "no_worse"
        return {**{name: getattr(self, name) for name in names}, "allow": dict(self.allow)}

    @property
    def passed(self) -> bool:
        """Whether the gate passes, with a warning or without."""
        return self.outcome in ("passed", "warned")

    @property
    def outcome(self) -> Outcome:
        """What becomes of the gate.

        ``"failed"``; ``"not checked"``: no unit of a layer ever changes; ``"inconclusive"``: the
        images cannot tell; ``"warned"``: it passes, with strong reactions; or ``"passed"``.
        """
        if self.risen:
            return "failed"
        if self.unclear and self.inconclusive != "pass":
            return "failed" if self.inconclusive == "fail" else "inconclusive"
        if self.failing and not self.unclear:
            return "failed"
        if self.unchecked or self.uncompared:
            return "not checked"
        if self.strong:
            return "failed" if self.strict else "warned"
        return "passed"

    @property
    def unchecked(self) -> bool:
        """Whether a layer has no unit that ever changes, so that there is nothing to go by."""
        return bool(self.report.dead_layers)

    @cached_property
    def conclusion(self) -> Conclusion:
        """Whether the images can tell that the largest d reaches the threshold, or stays below."""
        return conclude(self.report, self.threshold, self.exempt)

    @property
    def unclear(self) -> bool:
        """Whether the images cannot tell."""
        return self.conclusion.answer == "unclear"

    def restrict_to(self, layer: str, scenario: str) -> Verdict:
        """Return the part for one layer, with all outputs for "logits", and one scenario."""
        report = self.report

        def inside(unit: SensitiveUnit | UnitChange) -> bool:
            return (asked_layer(unit.layer), unit.scenario) == (layer, scenario)

        scores = {
            k: s for k, s in report.scores.items() if (asked_layer(k[0]), k[1]) == (layer, scenario)
        }
        early = report.early_stop and report.early_stop.restrict_to(layer, scenario)
        return replace(
            self,
            report=replace(report, scores=scores, early_stop=early),
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
        lines += [
            f"Probed: {printable(extent(report))}, seed {report.seed}, {printable(report.device)} "
            f"in {printable(report.precision)}.",
            f"Preprocessing: {printable(report.preprocessing)}.",
            "A: how often a marked image scores above a clean one. d = max(A, 1 - A).",
        ]
        if report.controls:
            lines.append("A/control: how often it scores above one with the same ink, scrambled.")
        if images_taken := decision(report):
            lines.append(images_taken)
        lines += [f"Note: {printable(note)}." for note in report.notes]
        if self.unclear and not self.passed:
            lines += _MORE_IMAGES
        elif shown and not self.passed:
            lines += _advice(shown)
        return "\n".join(lines)

    def sentence(self) -> str:
        """Tell the verdict in a sentence."""
        model = printable(self.report.model)
        words = {
            "failed": "is watermark-sensitive",
            "not checked": "could not be checked",
            "inconclusive": "could not be checked",
            "warned": "passes",
            "passed": "is not watermark-sensitive" if self.report.clean else "passes",
        }[self.outcome]
        if self.risen:
            words = "is worse than the release before"
        elif self.outcome == "failed" and not self.failing:
            words = "reacts strongly to watermarks" if self.strong else "could not be checked"
        return f"{model} {words}: {self.grounds()}."

    def grounds(self) -> str:
        """Say why the verdict is what it is: the part of the sentence after the colon."""
        report = self.report
        if self.risen:
            rose = listed(_numbers(report, self.risen))
            verb = "reacts" if len(self.risen) == 1 else "react"
            return f"{rose} rose beyond chance, and {verb} strongly now (d >= {self.warn:g})"
        if self.unclear and self.inconclusive != "pass":
            return self._doubt()
        if self.failing and not self.unclear:
            return f"{_reacting(report, self.failing)} (d >= {self.threshold:g})"
        if report.dead_layers:
            dead = listed(map(printable, report.dead_layers))
            return f"no unit of its {dead} ever changes, whatever the image"
        if self.uncompared:
            layer, scenario, why = self.uncompared[0]
            place = printable(f"{layer} under {scenario}")
            return (
                f"whether {place}{and_more(self.uncompared, 1)} is no worse than in the release "
                f"before cannot be told ({printable(why)})"
            )
        if self.strong and self.strict:
            return f"{_reacting(report, self.strong)} (d >= {self.warn:g}; strict)"
        return self._doubt() if self.unclear else self._reach()

    def _doubt(self) -> str:
        """Say why the images cannot tell, and how many would."""
        needed = self.conclusion.images_needed
        images = count(self.report.n_images, "image")
        enough = "" if needed is None else f"; about {needed:,} would tell"
        if not self.failing:
            return (
                f"{images} cannot tell whether a unit reaches d = {self.threshold:g}: none does in "
                f"them, but the largest d may be higher than it looks{enough}"
            )
        units = listed(_numbers(self.report, self.failing))
        verb = "reaches" if len(self.failing) == 1 else "reach"
        return (
            f"{images} cannot tell whether a unit reaches d = {self.threshold:g}: {units} {verb} "
            f"it in them, which may be chance{enough}"
        )

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
    return [
        "  ".join(
            set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _advice(failing: Sequence[SensitiveUnit]) -> list[str]:
    entry = f"{failing[0].layer}:{printable(failing[0].name)}"
    classes = any(unit.layer == "logits" for unit in failing)
    where = "of these classes" if classes else "that excite these units most"
    return [
        f"What to do: look for such marks in the training images {where},",
        "and train again without them; or accept a known unit, with a reason:",
        f"  allow={{{entry!r}: 'why'}}, --wm-allow={entry + '=why'!r} or wm_allow;",
        "or put all of them on record as they are: --wm-update-known",
    ]
