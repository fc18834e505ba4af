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

Entry = tuple[ProbeReport, Sequence[Verdict]]


class ScenarioResult(NamedTuple):
    """The verdict on one model under one scenario."""

    name: str
    state: str
    words: str
    worst: SensitiveUnit


class Model(NamedTuple):
    """The verdict on one model.

    Attributes
    ----------
    name : str
    number : int
        Its place on the page.
    sensitive : bool
    word, sentence : str
    scenarios : tuple of ScenarioResult
    judged : Judged
    gates : tuple of str
        The stories of its gates.
    facts : tuple of (str, str)
        How it was probed.
    """

    name: str
    number: int
    sensitive: bool
    word: str
    sentence: str
    scenarios: tuple[ScenarioResult, ...]
    judged: Judged
    gates: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]

    @property
    def good(self) -> bool:
        """Whether it was checked, and nothing is wrong with it."""
        return self.word in ("passed", "clean")

    @property
    def highest(self) -> float:
        """The largest d of all."""
        return max(scenario.worst.differentiability for scenario in self.scenarios)


def judged(entries: Sequence[Entry], threshold: float) -> list[Judged]:
    """Put together what the gates of each report say; without gates, the run's threshold counts."""
    names = _distinct([report.model for report, _ in entries])
    judged_reports = []
    for name, (report, verdicts) in zip(names, entries, strict=True):
        lowest = min((verdict.threshold for verdict in verdicts), default=threshold)
        reaching = report.sensitive(lowest)
        failing = [u for v in verdicts for u in v.failing] if verdicts else reaching
        fails = frozenset((u.layer, u.scenario, u.index) for u in failing)
        reach = frozenset((u.layer, u.scenario, u.index) for u in reaching)
        judged_reports.append(Judged(name, report, lowest, fails, reach - fails))
    return judged_reports


def models(entries: Sequence[Entry], judged_reports: Sequence[Judged]) -> list[Model]:
    """Return the models, those that are sensitive first, then by d."""
    rows = [
        _model(number, one, verdicts)
        for number, (one, (_, verdicts)) in enumerate(zip(judged_reports, entries, strict=True))
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
    if not models:
        if owned and not failures:
            return Headline(f"Ownership: {owned} verification{'s' * (owned > 1)}", "")
        if failures:
            return Headline("No model could be probed", "bad")
        return Headline("No probe was made", "")
    counted = [model for model in models if model.gates] or models
    bad = sum(model.sensitive for model in counted)
    unchecked = sum(model.word == "not checked" for model in counted)
    missed = f", {unchecked} could not be checked" if unchecked else ""
    missed += f", {len(failures)} could not be probed" if failures else ""
    state = "bad" if bad or unchecked or failures else "good"
    several = len({model.judged.report.model for model in counted}) < len(counted)
    if len(counted) == unchecked == 1:
        return Headline("Could not be checked", state)
    if len(counted) == 1:
        words = "Watermark-sensitive" if bad else "Not watermark-sensitive"
    elif several:
        words = f"{bad or 'None'} of {len(counted)} probes found a model watermark-sensitive"
    elif bad:
        verb = "is" if bad == 1 else "are"
        words = f"{bad} of {len(counted)} models {verb} watermark-sensitive"
    else:
        words = f"None of {len(counted)} models is watermark-sensitive"
    return Headline(words + missed, state)


def counts(
    judged_reports: Sequence[Judged],
) -> Iterator[tuple[Judged, SensitiveUnit, int, list[int]]]:
    """Give each layer's and scenario's strongest unit, number of units, and counts at TIERS."""
    for one in judged_reports:
        for scores in one.report:
            worst = scores.strongest()
            yield one, worst, len(scores.names), [scores.count(tier) for tier in TIERS]


def _model(number: int, one: Judged, verdicts: Sequence[Verdict]) -> Model:
    report = one.report
    gate = verdicts or [Verdict(report, one.threshold, tuple(report.sensitive(one.threshold)))]
    # The page quotes the gate with the lowest threshold, of those that fail if there are any.
    telling = min(gate, key=lambda verdict: (verdict.passed, verdict.threshold))
    bad = bool(one.failing)
    word = "failed" if bad else telling.outcome
    if not verdicts:
        word = {"failed": "sensitive", "passed": "clean"}.get(word, word)
    return Model(
        one.name,
        number,
        bad,
        word,
        telling.story().splitlines()[0],
        tuple(_scenario(one, scenario) for scenario in report.scenarios),
        one,
        tuple(verdict.story() for verdict in verdicts),
        tuple(_facts(report, one.threshold, verdicts)),
    )


def _scenario(one: Judged, scenario: str) -> ScenarioResult:
    in_scenario = [scores for scores in one.report if scores.scenario == scenario]
    worst = max(
        (scores.strongest() for scores in in_scenario),
        key=lambda unit: unit.differentiability,
    )
    failing = Counter(layer for layer, name, _ in one.failing if name == scenario)
    accepted = sum(name == scenario for _, name, _ in one.accepted)
    if failing:
        layers = [layer for layer in one.report.layers if layer in failing]
        verb = "reacts" if failing.total() == 1 else "react"
        words = f"{listed(_units(layer, failing[layer]) for layer in layers)} {verb}"
        return ScenarioResult(scenario, "bad", words, worst)
    if accepted:
        return ScenarioResult(
            scenario, "known", f"{count(accepted, 'accepted unit')}, no other", worst
        )
    if dead := one.report.dead_layers:
        words = f"not checked: no unit of {listed(dead)} ever changes"
        return ScenarioResult(scenario, "bad", words, worst)
    return ScenarioResult(scenario, "good", "no unit reacts", worst)


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
    yield (
        "Controls",
        ("scrambled marks were probed too" if report.controls else "none (--wm-control)"),
    )
    if report.weights:
        yield "Weights below the head", report.weights
    yield "Probed by version", report.version
    if report.versions:
        yield "With", ", ".join(f"{name} {release}" for name, release in report.versions.items())


def _distinct(names: Sequence[str]) -> list[str]:
    seen: Counter[str] = Counter()
    total = Counter(names)
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(f"{name} (probe {seen[name]})" if total[name] > 1 else name)
    return distinct
