"""Known units: sensitive ones that people have on record, and what a gate makes of the record.

Read when pytest starts: nothing heavy is imported here.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.scores import SensitiveUnit

    Pairs = tuple[tuple[SensitiveUnit, "KnownUnit"], ...]

MARGIN = 0.005
"""By how much d may exceed its record: more than rounding and precision move it."""

Key = tuple[str, str, str, str, int, str]
"""Model, weights, layer, scenario, index and name."""


def asked_layer(layer: str) -> str:
    """Return the layer that was asked for: "logits" for a further output "logits[shape]"."""
    return layer.partition("[")[0]


@dataclass(frozen=True)
class KnownUnit:
    """One recorded unit."""

    model: str
    weights: str  # the record holds for these only, see `ProbeReport`
    layer: str
    script: str  # the scenario, under its name in the files
    index: int
    name: str
    d: float  # when it was recorded
    threshold: float  # of the gate that it was recorded for
    date: datetime.date
    reason: str = ""  # why it may stay; written by people
    expires: datetime.date | None = None  # the last day on which it may stay; set by people

    @property
    def key(self) -> Key:
        """What tells it from other units."""
        return self.model, self.weights, self.layer, self.script, self.index, self.name

    @property
    def label(self) -> str:
        """Name and index, as `SensitiveUnit.label`."""
        named = self.name != str(self.index)
        return f"{self.name} [{self.index}]" if named else f"unit {self.index}"

    def state(self, d: float, today: datetime.date) -> Literal["passed", "worse", "expired"]:
        """Say whether the unit may stay today, with this d."""
        if self.expires is not None and self.expires < today:
            return "expired"
        return "passed" if d <= self.d + MARGIN else "worse"


@dataclass(frozen=True)
class KnownFindings:
    """What one gate made of the record."""

    file: str = ""  # where the record is kept, for people
    passed: Pairs = ()  # sensitive, and let pass
    worse: Pairs = ()  # on record, and failing all the same
    expired: Pairs = ()
    unneeded: tuple[KnownUnit, ...] = ()  # not sensitive (any more), or allowed in another way
    # Of a model of this name with other weights, while none is for these.
    other_weights: tuple[KnownUnit, ...] = ()

    @property
    def used(self) -> Pairs:
        """All sensitive units that are on record."""
        return (*self.passed, *self.worse, *self.expired)

    def restrict_to(self, layer: str, scenario: str) -> KnownFindings:
        """Return the part for one layer and scenario."""

        def units(pairs: Pairs) -> Pairs:
            where = layer, scenario
            return tuple(p for p in pairs if (asked_layer(p[0].layer), p[0].scenario) == where)

        def records(known: tuple[KnownUnit, ...]) -> tuple[KnownUnit, ...]:
            where = layer, scenario
            return tuple(k for k in known if (asked_layer(k.layer), k.script) == where)

        return KnownFindings(
            self.file,
            units(self.passed),
            units(self.worse),
            units(self.expired),
            records(self.unneeded),
            records(self.other_weights),
        )


@dataclass(frozen=True)
class KnownUnits:
    """The record that a run's gates go by."""

    file: str = ""  # where it is kept, for people
    units: tuple[KnownUnit, ...] = ()
    updating: bool = False  # this run records what it finds: a unit is known as it is today
    today: datetime.date = field(default_factory=datetime.date.today)

    def concerns(self, model: str) -> bool:
        """Whether a gate of a model of this name needs the exact d of every unit."""
        return self.updating or plain_text(model) in {known.model for known in self.units}

    def record(
        self, report: ProbeReport, unit: SensitiveUnit, threshold: float
    ) -> KnownUnit | None:
        """Return the record of a sensitive unit, if there is one."""
        model, layer, scenario, name = map(
            plain_text, (report.model, unit.layer, unit.scenario, unit.name)
        )
        key = model, report.weights, layer, scenario, unit.index, name
        old = self._by_key.get(key)
        if not self.updating:
            return old
        fresh = KnownUnit(*key, round(unit.differentiability, 4), threshold, self.today)
        if old is None:
            return fresh
        if abs(old.d - fresh.d) <= MARGIN:
            return replace(old, threshold=threshold)  # d is as it was recorded
        return replace(fresh, reason=old.reason, expires=old.expires)

    def findings(
        self, report: ProbeReport, threshold: float, used: Iterable[tuple[SensitiveUnit, KnownUnit]]
    ) -> KnownFindings:
        """Say what became of the record, given the sensitive units with their records."""
        pairs = tuple(used)
        needed = {known.key for _, known in pairs}
        model = [known for known in self.units if known.model == plain_text(report.model)]
        these = [known for known in model if known.weights == report.weights]
        unneeded = [k for k in these if k.key not in needed and decides(report, threshold, k)]
        others = [] if these else [k for k in model if decides(report, threshold, k)]
        states: dict[str, list[tuple[SensitiveUnit, KnownUnit]]] = {}
        for unit, known in pairs:
            state = known.state(unit.differentiability, self.today)
            states.setdefault(state, []).append((unit, known))
        return KnownFindings(
            self.file,
            **{state: tuple(units) for state, units in states.items()},
            unneeded=tuple(unneeded),
            other_weights=tuple(others),
        )

    def elsewhere(self, reports: Iterable[ProbeReport]) -> Counter[str]:
        """Count the units that no gate of a run was asked about, by what was missing."""
        places = {(plain_text(r.model), r.weights, *place) for r in reports for place in _asked(r)}
        weights = {place[:2] for place in places}
        models = {model for model, _ in weights}
        counts: Counter[str] = Counter()
        for known in self.units:
            if known.model not in models:
                counts["of models that were not gated"] += 1
            elif (known.model, known.weights) not in weights:
                counts["for other weights"] += 1
            elif (known.model, known.weights, known.layer, known.script) not in places:
                counts["of layers or scenarios that were not probed"] += 1
        return counts

    @cached_property
    def _by_key(self) -> dict[Key, KnownUnit]:
        return {known.key: known for known in self.units}


def decides(report: ProbeReport, threshold: float, known: KnownUnit) -> bool:
    """Whether a gate can tell that a record of its model's name is not needed any more."""
    # A gate with a higher threshold does not look for the unit, and one that ended early may not
    # have seen enough images to say that it is no longer sensitive.
    asked = (known.layer, known.script) in _asked(report)
    return asked and threshold <= known.threshold and not report.stopped_early


def _asked(report: ProbeReport) -> set[tuple[str, str]]:
    return {(plain_text(layer), plain_text(scenario)) for layer, scenario in report.scores}


def plain_text(text: str) -> str:
    """Return text that a file can hold: lone surrogates are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
