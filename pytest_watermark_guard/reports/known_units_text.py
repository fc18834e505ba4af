"""What became of the known units, in lines of text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from pytest_watermark_guard.reports.known_units import MARGIN, KnownFindings, KnownUnit
from pytest_watermark_guard.reports.scores import SensitiveUnit
from pytest_watermark_guard.reports.text import and_more, count, listed, printable, reaction

WORST = 10


def known_lines(known: KnownFindings) -> Iterator[str]:
    """Tell of one gate: which units were let pass, and what of the record needs a look."""
    yield from _units("known", known.passed, known)
    yield from _units("worse than known", known.worse, known)
    yield from _units("no longer known", known.expired, known)
    file = printable(known.file)
    if known.unneeded:
        shown = ", ".join(map(_where, known.unneeded[:WORST]))
        yield f"no longer needed in {file}: {shown}{and_more(known.unneeded, WORST)}"
    if known.other_weights:
        yield (
            f"not applied: {file} knows {count(len(known.other_weights), 'unit')} of this model "
            "with other weights; review the model anew, then --wm-update-known"
        )


def known_summary(
    findings: Iterable[tuple[str, KnownFindings]], elsewhere: Mapping[str, int]
) -> Iterator[str]:
    """Tell of a whole run: a line for each model with units let pass, a line for the file.

    `findings` holds a model and what its gate found, gate by gate; `elsewhere` the numbers of units
    that no gate was asked about, by what was missing.
    """
    findings = list(findings)
    file = printable(next((finding.file for _, finding in findings), ""))
    let_pass: dict[str, dict[tuple[str, str], dict[str, None]]] = {}
    others: dict[str, dict[str, None]] = {}  # names that the same weights are recorded by
    for model, finding in findings:
        for unit, known in finding.passed:
            scenarios = let_pass.setdefault(model, {}).setdefault((unit.layer, unit.label), {})
            scenarios[unit.scenario] = None
            if known.model != finding.model:
                others.setdefault(model, {})[known.model] = None
    for model, units in let_pass.items():
        shown = [
            f"{printable(layer, 28)} {printable(label, 28)} ({', '.join(map(printable, names))})"
            for (layer, label), names in units.items()
        ]
        # The list is not shortened: no unit passes without being named.
        names = listed(_same_weights(name) for name in others[model]) if model in others else ""
        yield f"known in {printable(model)}, let pass: {', '.join(shown)}{names}"
    needed = {known.key for _, finding in findings for _, known in finding.used}
    numbers = {
        "worse": {known.key for _, finding in findings for _, known in finding.worse},
        "expired": {known.key for _, finding in findings for _, known in finding.expired},
        "no longer needed": {k.key for _, finding in findings for k in finding.unneeded} - needed,
    }
    counts = [f"{len(units):,} {what}" for what, units in numbers.items() if units]
    counts += [f"{number:,} {what}" for what, number in elsewhere.items()]
    if counts:
        yield f"of the units in {file}: {', '.join(counts)}"
    plain = {k.key for _, finding in findings for _, k in finding.used if k.setting is None}
    if plain:
        yield (
            f"{count(len(plain), 'unit')} in {file} recorded without seed, images and precision: "
            f"whatever these are now, d may exceed the record by {MARGIN}, as if they were the "
            "same; --wm-update-known adds them"
        )


def _same_weights(name: str) -> str:
    return f" (recorded as {printable(name)!r}, the same weights)"


def _units(
    word: str, units: Collection[tuple[SensitiveUnit, KnownUnit]], findings: KnownFindings
) -> Iterator[str]:
    for unit, known in list(units)[:WORST]:
        until = f" until {known.expires}" if known.expires else ""
        reason = f": {known.reason}" if known.reason else ""
        other = known.setting and findings.setting and known.setting.difference(findings.setting)
        setting = f" {printable(other)}" if other else ""
        name = f" as {printable(known.model)!r}, the same weights"
        renamed = "" if known.model == findings.model else name
        recorded = f"recorded: {known.d:.3f} on {known.date}{until}{setting}{renamed}"
        yield f"{word}: {reaction(unit)} ({recorded}){printable(reason, 60)}"
    if len(units) > WORST:
        yield f"{word}: ... and {len(units) - WORST:,} more"


def _where(known: KnownUnit) -> str:
    return printable(f"{known.layer} {known.label} ({known.script})", 60)
