"""What the page says of each model, in words and rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_watermark_guard.reports.html.consequence import (
    Step,
    consequence,
    deciding_unit,
    steps,
    telling_unit,
)
from pytest_watermark_guard.reports.html.units import Judged
from pytest_watermark_guard.reports.names import short_names
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import TIERS, SensitiveUnit
from pytest_watermark_guard.reports.text import count, decision, listed
from pytest_watermark_guard.reports.verdict import Verdict
from pytest_watermark_guard.settings import WARN
from pytest_watermark_guard.watermarks.streams import BLOBS, CONTROLS, STROKES

Entry = tuple[ProbeReport, Sequence[Verdict]]


class ScenarioResult(NamedTuple):
    """The verdict on one model under one scenario."""

    name: str
    state: str
    words: str
    worst: SensitiveUnit


class Model(NamedTuple):
    """The verdict on one model."""

    name: str
    number: int  # its place on the page
    outcome: str
    word: str
    grounds: str  # why the verdict is what it is
    consequence: str  # what it means, in a sentence
    steps: tuple[Step, ...]  # what to do
    telling: SensitiveUnit  # the unit that the sentence is about
    deciding: SensitiveUnit  # the strongest of those that the verdict stands on
    scenarios: tuple[ScenarioResult, ...]
    judged: Judged
    gates: tuple[str, ...]  # their stories
    facts: tuple[tuple[str, str], ...]  # how it was probed: name and value

    @property
    def state(self) -> str:
        """How it looks: ``"bad"``, ``"warned"``, ``"good"``, or ``"unclear"``: nobody knows."""
        states = {"passed": "good", "warned": "warned", "failed": "bad"}
        return states.get(self.outcome, "unclear")

    @property
    def spec(self) -> str:
        """The model's whole name."""
        return self.judged.report.model

    @property
    def strongest(self) -> SensitiveUnit:
        """The unit of the largest d of all."""
        worst = (scenario.worst for scenario in self.scenarios)
        return max(worst, key=lambda unit: unit.differentiability)

    @property
    def highest(self) -> float:
        """The largest d of all."""
        return self.strongest.differentiability


def judged(entries: Sequence[Entry], threshold: float) -> list[Judged]:
    """Put together what the gates of each report say; without gates, the run's threshold counts."""
    short = short_names(report.model for report, _ in entries)
    names = _distinct([short[report.model] for report, _ in entries])
    probes = []
    for name, (report, verdicts) in zip(names, entries, strict=True):
        lowest = min((verdict.threshold for verdict in verdicts), default=threshold)
        reaching = report.sensitive(lowest)
        failing = [unit for v in verdicts for unit in v.failing] if verdicts else reaching
        fails, reach = (
            frozenset((unit.layer, unit.scenario, unit.index) for unit in units)
            for units in (failing, reaching)
        )
        probes.append(Judged(name, report, lowest, fails, reach - fails))
    return probes


def models(entries: Sequence[Entry], probes: Sequence[Judged]) -> list[Model]:
    """Return the models: those that fail first, then those of which nobody knows; then by d."""
    rows = [
        _model(number, probe, verdicts)
        for number, (probe, (_, verdicts)) in enumerate(zip(probes, entries, strict=True))
    ]
    order = {"failed": 0, "inconclusive": 1, "not checked": 1}
    return sorted(rows, key=lambda model: (order.get(model.outcome, 2), -model.highest))


class Headline(NamedTuple):
    """The page's first line, and whether it is bad, good or neither."""

    words: str
    state: str


def headline(models: Sequence[Model], failures: Mapping[str, str]) -> Headline:
    """Say how many models are sensitive.

    Where there are gates, they count, and not what was probed beside them.
    """
    if not models:
        words = "No model could be probed" if failures else "No probe was made"
        return Headline(words, "bad" if failures else "")
    counted = [model for model in models if model.gates] or models
    outcomes = Counter(model.outcome for model in counted)
    missed = f", {len(failures)} could not be probed" if failures else ""
    states = {model.state for model in counted} | ({"bad"} if failures else set())
    state = next(each for each in ("bad", "unclear", "warned", "good") if each in states)
    if len(counted) == 1:
        return Headline(_alone(counted[0]) + missed, state)
    several = len({model.spec for model in counted}) < len(counted)
    noun = "probes" if several else "models"
    bad = outcomes["failed"]
    words = f"{bad or 'None'} of {len(counted)} {noun} {'fail' if bad > 1 else 'fails'}"
    for outcome, told in (
        ("warned", "with strong reactions"),
        ("inconclusive", "inconclusive"),
        ("not checked", "with nothing to go by"),
    ):
        words += f", {outcomes[outcome]} {told}" if outcomes[outcome] else ""
    return Headline(words + missed, state)


def _alone(model: Model) -> str:
    words = {
        "failed": "Watermark-sensitive",
        "warned": "Passes, with strong reactions",
        "inconclusive": "Inconclusive: these images cannot tell",
        "not checked": "Not checked: there was nothing to go by",
    }
    if model.outcome != "passed":
        return words[model.outcome]
    clean = model.judged.report.clean
    return "Not watermark-sensitive" if clean else f"Nothing reaches {model.judged.threshold:g}"


def notes(models: Sequence[Model], cautions: Sequence[str]) -> list[tuple[str, str]]:
    """Return what must not be missed, each note once, with the models that it is of."""
    of: dict[str, list[str]] = {}
    for model in models:
        for note in model.judged.report.notes:
            of.setdefault(f"{note[:1].upper()}{note[1:]}.", []).append(model.name)
    every = len(models)
    told = [(note, "" if len(names) == every else listed(names)) for note, names in of.items()]
    return told + [(caution, "") for caution in cautions]


def counts(
    probes: Sequence[Judged],
) -> Iterator[tuple[Judged, SensitiveUnit, int, list[int], tuple[float, float] | None]]:
    """Give each layer's and scenario's strongest unit, number of units, counts at TIERS, interval.

    The interval is that of the largest d; None if unknown.
    """
    for probe in probes:
        for scores in probe.report:
            tiers = [scores.count(tier) for tier in TIERS]
            yield probe, scores.strongest(), len(scores.names), tiers, scores.largest


def _model(number: int, probe: Judged, verdicts: Sequence[Verdict]) -> Model:
    report = probe.report
    gates = verdicts or [_ungated(probe)]
    # The page quotes the gate with the lowest threshold, of those that fail if there are any.
    quoted = min(gates, key=lambda verdict: (verdict.passed, verdict.threshold))
    telling, outcome = telling_unit(quoted), quoted.outcome
    word: str = outcome
    if not verdicts:
        passed = "clean" if report.clean else f"below {probe.threshold:g}"
        words = {"failed": "sensitive", "warned": "strong reactions", "passed": passed}
        word = words.get(outcome, outcome)
    return Model(
        name=probe.name,
        number=number,
        outcome=outcome,
        word=word,
        grounds=quoted.grounds(),
        consequence=consequence(report, telling),
        steps=tuple(steps(quoted)),
        telling=telling,
        deciding=deciding_unit(quoted),
        scenarios=tuple(_scenario(probe, quoted, scenario) for scenario in report.scenarios),
        judged=probe,
        gates=tuple(verdict.story() for verdict in verdicts),
        facts=tuple(_facts(report, probe.threshold, verdicts)),
    )


def _ungated(probe: Judged) -> Verdict:
    """Return the verdict of a gate with the usual settings, where there was none."""
    failing = tuple(probe.report.sensitive(probe.threshold))
    strong = probe.report.sensitive(min(WARN, probe.threshold))[len(failing) :]
    return Verdict(probe.report, probe.threshold, failing, warn=WARN, strong=tuple(strong))


def _scenario(probe: Judged, verdict: Verdict, scenario: str) -> ScenarioResult:
    strongest = [scores.strongest() for scores in probe.report if scores.scenario == scenario]
    worst = max(strongest, key=lambda unit: unit.differentiability)
    failing = Counter(layer for layer, name, _ in probe.failing if name == scenario)
    accepted = sum(name == scenario for _, name, _ in probe.accepted)
    if failing:
        layers = [layer for layer in probe.report.layers if layer in failing]
        verb = "reacts" if failing.total() == 1 else "react"
        words = f"{listed(_units(layer, failing[layer]) for layer in layers)} {verb}"
        state = "unclear" if verdict.outcome == "inconclusive" else "bad"
        return ScenarioResult(scenario, state, words, worst)
    if accepted:
        words = f"{count(accepted, 'accepted unit')}, no other"
        return ScenarioResult(scenario, "known", words, worst)
    if dead := probe.report.dead_layers:
        words = f"not checked: no unit of {listed(dead)} ever changes"
        return ScenarioResult(scenario, "unclear", words, worst)
    if strong := [unit for unit in verdict.strong if unit.scenario == scenario]:
        verb = "reacts" if len(strong) == 1 else "react"
        words = f"{count(len(strong), 'unit')} {verb} strongly"
        return ScenarioResult(scenario, "known", words, worst)
    return ScenarioResult(scenario, "good", f"nothing reaches {probe.threshold:g}", worst)


def _units(layer: str, number: int) -> str:
    if layer in ("logits", "features"):
        return count(number, layer.removesuffix("s"))
    return f"{count(number, 'unit')} of {layer}"


def _facts(
    report: ProbeReport, threshold: float, verdicts: Sequence[Verdict]
) -> Iterator[tuple[str, str]]:
    yield "Model", report.model
    yield "Images", report.extent
    yield "Scenarios", ", ".join(report.scenarios)
    yield "Layers", ", ".join(report.layers)
    yield "Threshold on d", f"{threshold:g}" + ("" if verdicts else " (no gate: for this page)")
    yield "Seed", str(report.seed)
    yield "Preprocessing", report.preprocessing
    yield "Ran on", f"{report.device}, {report.precision}"
    if early_stopping := decision(report):
        yield "Early stopping", early_stopping
    kinds = {kind for _, _, kind in report.controls_alone} | (
        {STROKES} if report.controls else set()
    )
    words = {STROKES: "scrambled strokes", BLOBS: "blobs of the same ink"}
    controls = [words[kind] for kind in CONTROLS if kind in kinds]
    yield "Controls", listed(controls) if controls else "none (--wm-control)"
    if report.weights:
        yield "Weights below the head", report.weights
    yield "Probed by version", report.version
    if report.versions:
        yield "With", ", ".join(f"{name} {release}" for name, release in report.versions.items())


def _distinct(names: Sequence[str]) -> list[str]:
    """Tell names that come more than once apart by a number."""
    total, seen = Counter(names), Counter[str]()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(f"{name} (probe {seen[name]})" if total[name] > 1 else name)
    return distinct
