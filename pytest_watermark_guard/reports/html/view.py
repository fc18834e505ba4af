"""What the page says of each model, in words and rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pytest_watermark_guard.reports.html.units import Judged
from pytest_watermark_guard.reports.probe import ProbeReport
from pytest_watermark_guard.reports.scores import TIERS, SensitiveUnit
from pytest_watermark_guard.reports.text import count, decision, extent, listed
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
    sensitive: bool
    outcome: str
    word: str
    sentence: str
    scenarios: tuple[ScenarioResult, ...]
    judged: Judged
    gates: tuple[str, ...]  # their stories
    facts: tuple[tuple[str, str], ...]  # how it was probed: name and value

    @property
    def state(self) -> str:
        """``"good"``: checked, and nothing is wrong with it; ``"warned"``; or ``"bad"``."""
        return {"passed": "good", "warned": "warned"}.get(self.outcome, "bad")

    @property
    def highest(self) -> float:
        """The largest d of all."""
        return max(scenario.worst.differentiability for scenario in self.scenarios)


def judged(entries: Sequence[Entry], threshold: float) -> list[Judged]:
    """Put together what the gates of each report say; without gates, the run's threshold counts."""
    names = _distinct([report.model for report, _ in entries])
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
    """Return the models, those that are sensitive first, then by d."""
    rows = [
        _model(number, probe, verdicts)
        for number, (probe, (_, verdicts)) in enumerate(zip(probes, entries, strict=True))
    ]
    return sorted(rows, key=lambda model: (not model.sensitive, -model.highest))


class Headline(NamedTuple):
    """The page's first line, and whether it is bad, good or neither."""

    words: str
    state: str


def headline(models: Sequence[Model], failures: Mapping[str, str], owned: int = 0) -> Headline:
    """Say how many models are sensitive, or else how many were tried an ownership key on.

    Where there are gates, they count, and not what was probed beside them.
    """
    if not models and failures:
        return Headline("No model could be probed", "bad")
    if not models and owned:
        return Headline(f"Ownership: {count(owned, 'verification')}", "")
    if not models:
        return Headline("No probe was made", "")
    counted = [model for model in models if model.gates] or models
    outcomes = Counter(model.outcome for model in counted)
    unchecked = outcomes["not checked"] + outcomes["inconclusive"]
    missed = f", {len(failures)} could not be probed" if failures else ""
    states = {model.state for model in counted}
    state = "bad" if failures or "bad" in states else "warned" if "warned" in states else "good"
    if len(counted) == 1:
        return Headline(_alone(counted[0]) + missed, state)
    several = len({model.judged.report.model for model in counted}) < len(counted)
    noun = "probes" if several else "models"
    bad = outcomes["failed"]
    words = f"{bad or 'None'} of {len(counted)} {noun} {'fail' if bad > 1 else 'fails'}"
    words += f", {outcomes['warned']} with strong reactions" if outcomes["warned"] else ""
    words += f", {unchecked} could not be checked" if unchecked else ""
    return Headline(words + missed, state)


def _alone(model: Model) -> str:
    if model.outcome == "failed":
        return "Watermark-sensitive"
    if model.outcome == "warned":
        return "Passes, with strong reactions"
    if model.outcome != "passed":
        return "Could not be checked"
    clean = model.judged.report.clean
    return "Not watermark-sensitive" if clean else f"Nothing reaches {model.judged.threshold:g}"


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
    outcome = quoted.outcome
    word: str = outcome
    if not verdicts:
        passed = "clean" if report.clean else f"below {probe.threshold:g}"
        words = {"failed": "sensitive", "warned": "strong reactions", "passed": passed}
        word = words.get(outcome, outcome)
    return Model(
        name=probe.name,
        number=number,
        sensitive=outcome == "failed",
        outcome=outcome,
        word=word,
        sentence=quoted.sentence(),
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
        return ScenarioResult(scenario, "bad", words, worst)
    if accepted:
        words = f"{count(accepted, 'accepted unit')}, no other"
        return ScenarioResult(scenario, "known", words, worst)
    if dead := probe.report.dead_layers:
        words = f"not checked: no unit of {listed(dead)} ever changes"
        return ScenarioResult(scenario, "bad", words, worst)
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
    yield "Images", extent(report)
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
