"""What a gate decided, and how it tells it: a message that fits on a screen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size

from pytest_watermark_guard.reports.known_units import KnownFindings
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

WORST = 10


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
    """

    report: ProbeReport
    threshold: float
    failing: tuple[SensitiveUnit, ...]
    allow: Mapping[str, str] = field(default_factory=dict)
    allowed: tuple[tuple[SensitiveUnit, str], ...] = ()
    stale: tuple[str, ...] = ()
    known: KnownFindings = field(default_factory=KnownFindings)

    @property
    def passed(self) -> bool:
        """Whether no unit is sensitive but those allowed or known, and there was one to check."""
        return self.outcome == "passed"

    @property
    def outcome(self) -> str:
        """``"passed"``, ``"failed"`` or ``"not checked"``: no unit of a layer ever changes."""
        return "failed" if self.failing else "not checked" if self.unchecked else "passed"

    @property
    def unchecked(self) -> bool:
        """Whether a layer has no unit that ever changes, so that there is nothing to go by."""
        return bool(self.report.dead_layers)

    def story(self) -> str:
        """Tell the verdict: one sentence, the worst units, the grounds, what to do."""
        report = self.report
        lines = [self.sentence(), ""]
        if self.failing:
            lines += _table(unit_table(report, self.failing[:WORST]))
            if len(self.failing) > WORST:
                hidden = len(self.failing) - WORST
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
        if self.failing:
            lines += _advice(self.failing)
        return "\n".join(lines)

    def sentence(self) -> str:
        """Tell the verdict in a sentence."""
        report, model = self.report, printable(self.report.model)
        if not self.failing and report.dead_layers:
            dead = listed(map(printable, report.dead_layers))
            return (
                f"{model} could not be checked: no unit of its {dead} ever changes, whatever the "
                "image."
            )
        if not self.failing:
            return (
                f"{model} is not watermark-sensitive: no unit outside the allowed and known ones "
                f"reaches d = {self.threshold:g}."
            )
        layers = dict.fromkeys(unit.layer for unit in self.failing)
        units = listed(_number_failing(report, layer, self.failing) for layer in layers)
        scenarios = listed(map(printable, dict.fromkeys(unit.scenario for unit in self.failing)))
        verb = "reacts" if len(self.failing) == 1 else "react"
        return (
            f"{model} is watermark-sensitive: {units} {verb} to {scenarios} marks "
            f"(d >= {self.threshold:g})."
        )

    def accepted_lines(self) -> Iterator[str]:
        """Tell which units were allowed or known, and which entries nothing needs any more."""
        for unit, reason in self.allowed[:WORST]:
            yield f"allowed: {reaction(unit)}: {printable(reason, 60)}"
        if len(self.allowed) > WORST:
            yield f"allowed: ... and {len(self.allowed) - WORST:,} more"
        if self.stale:
            shown = ", ".join(printable(entry, 30) for entry in self.stale[:WORST])
            yield f"no longer needed in allow: {shown}{and_more(self.stale, WORST)}"
        yield from known_lines(self.known)


def _number_failing(report: ProbeReport, layer: str, failing: Sequence[SensitiveUnit]) -> str:
    indices = {unit.index for unit in failing if unit.layer == layer}
    total = next(len(scores.names) for scores in report if scores.layer == layer)
    noun = "logit" if layer == "logits" else "feature" if layer == "features" else "unit"
    place = "" if layer in ("logits", "features") else f" in {printable(layer)}"
    return f"{len(indices):,} of {count(total, noun)}{place}"


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
