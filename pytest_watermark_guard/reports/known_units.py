"""Known units: sensitive ones that people have on record, and what a gate makes of the record.

Read when pytest starts: nothing heavy is imported here.
"""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pytest_watermark_guard.reports.names import asked_layer, unit_label

if TYPE_CHECKING:
    from pytest_watermark_guard.reports.probe import ProbeReport
    from pytest_watermark_guard.reports.scores import Scores, SensitiveUnit

    Pairs = tuple[tuple[SensitiveUnit, "KnownUnit"], ...]

MARGIN = 0.005
"""By how much d may exceed its record under the same setting: more than rounding moves it."""

BEYOND_CHANCE = 2.33
"""By how many standard errors of both d may exceed it under another: chance alone moves d further
up for one unit in a hundred, and for fewer where images are the same."""

Place = tuple[str, str, int, str]
"""Layer, scenario, index and name."""
Key = tuple[str, str, str, str, int, str]
"""Model, weights, layer, scenario, index and name."""


@dataclass(frozen=True)
class ProbeSetting:
    """What a unit's d depends on by chance, or by rounding."""

    seed: int
    images: int  # how many
    images_digest: str  # which, see `ProbeReport`
    precision: str

    @classmethod
    def of(cls, report: ProbeReport) -> ProbeSetting:
        """Return that of a probe."""
        return cls(report.seed, report.n_images, report.images_digest, report.number_format)

    def is_same(self, other: ProbeSetting) -> bool:
        """Whether the two are known to be the same."""
        return self == other and bool(self.images_digest)

    def difference(self, now: ProbeSetting) -> str:
        """Say in which way a probe that is made now differs; empty if it is the same."""
        if self.is_same(now):
            return ""
        then_words, now_words = [], []
        if self.seed != now.seed:
            then_words.append(f"seed {self.seed}")
            now_words.append(f"seed {now.seed}")
        if (self.images, self.images_digest) != (now.images, now.images_digest):
            others = "other " if self.images == now.images else ""
            then_words.append(f"{self.images:,} images")
            now_words.append(f"{now.images:,} {others}images")
        if self.precision != now.precision:
            then_words.append(self.precision)
            now_words.append(now.precision)
        if not then_words:
            return f"with {self.images:,} images, which may be others now"
        return f"with {' and '.join(then_words)}, now {' and '.join(now_words)}"


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
    # What the first files did not hold: `all_weights`, by which a model is known under another
    # name, the setting of the probe, and the standard error of d in it, infinite if it is unknown.
    all_weights: str = ""
    setting: ProbeSetting | None = None
    error: float | None = None

    @property
    def key(self) -> Key:
        """What tells it from other units."""
        return self.model, self.weights, *self.place

    @property
    def place(self) -> Place:
        """What tells it from other units of its model."""
        return self.layer, self.script, self.index, self.name

    @property
    def label(self) -> str:
        """Name and index, as `SensitiveUnit.label`."""
        return unit_label(self.name, self.index)

    def margin(self, setting: ProbeSetting, error: float) -> float:
        """Return by how much d may exceed the record, being measured with this standard error."""
        if self.setting is None or self.error is None or self.setting.is_same(setting):
            return MARGIN
        return max(MARGIN, BEYOND_CHANCE * math.hypot(self.error, error))


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
    model: str = ""  # the gated one, as files name it
    setting: ProbeSetting | None = None  # of its probe

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

        return replace(
            self,
            passed=units(self.passed),
            worse=units(self.worse),
            expired=units(self.expired),
            unneeded=records(self.unneeded),
            other_weights=records(self.other_weights),
        )


@dataclass(frozen=True)
class KnownUnits:
    """The record that a run's gates go by."""

    file: str = ""  # where it is kept, for people
    units: tuple[KnownUnit, ...] = ()
    updating: bool = False  # this run records what it finds: a unit is known as it is today
    today: datetime.date = field(default_factory=datetime.date.today)

    def concerns(self, model: str, all_weights: str) -> bool:
        """Whether a gate of a model of this name, or these weights, needs every unit's exact d."""
        named = plain_text(model)
        return self.updating or any(_holds(named, all_weights, known) for known in self.units)

    def record(
        self, report: ProbeReport, unit: SensitiveUnit, threshold: float
    ) -> KnownUnit | None:
        """Return the record of a sensitive unit, if there is one."""
        model, layer, scenario, name = map(
            plain_text, (report.model, unit.layer, unit.scenario, unit.name)
        )
        place = layer, scenario, unit.index, name
        key = model, report.weights, *place
        old = self._by_key.get(key)
        if old is None and report.all_weights:
            old = self._by_weights.get((report.all_weights, place))
        if not self.updating:
            return old
        fresh = KnownUnit(
            *key,
            round(unit.differentiability, 4),
            threshold,
            self.today,
            all_weights=report.all_weights,
            setting=ProbeSetting.of(report),
            error=round(_error(report[unit.layer, unit.scenario], unit.index), 4),
        )
        if old is None:
            return fresh
        fresh = replace(fresh, reason=old.reason, expires=old.expires)
        if old.setting == fresh.setting and abs(old.d - fresh.d) <= MARGIN:
            return replace(fresh, d=old.d, error=old.error, date=old.date)  # as it was recorded
        return fresh

    def state(
        self, report: ProbeReport, unit: SensitiveUnit, known: KnownUnit
    ) -> Literal["passed", "worse", "expired"]:
        """Say whether a recorded unit may stay today, as a report finds it."""
        if known.expires is not None and known.expires < self.today:
            return "expired"
        error = _error(report[unit.layer, unit.scenario], unit.index)
        margin = known.margin(ProbeSetting.of(report), error)
        return "passed" if unit.differentiability <= known.d + margin else "worse"

    def findings(
        self, report: ProbeReport, threshold: float, used: Iterable[tuple[SensitiveUnit, KnownUnit]]
    ) -> KnownFindings:
        """Say what became of the record, given the sensitive units with their records."""
        pairs = tuple(used)
        needed = {known.key for _, known in pairs}
        # By name alone: code may differ where weights do not, and with it what needs a record.
        model = [known for known in self.units if known.model == plain_text(report.model)]
        these = [known for known in model if known.weights == report.weights]
        unneeded = [k for k in these if k.key not in needed and decides(report, threshold, k)]
        others = [] if these else [k for k in model if decides(report, threshold, k)]
        states: dict[str, list[tuple[SensitiveUnit, KnownUnit]]] = {}
        for unit, known in pairs:
            state = self.state(report, unit, known)
            states.setdefault(state, []).append((unit, known))
        return KnownFindings(
            self.file,
            **{state: tuple(units) for state, units in states.items()},
            unneeded=tuple(unneeded),
            other_weights=tuple(others),
            model=plain_text(report.model),
            setting=ProbeSetting.of(report),
        )

    def elsewhere(self, reports: Iterable[ProbeReport]) -> Counter[str]:
        """Count the units that no gate of a run was asked about, by what was missing."""
        asked = [(report, _asked(report)) for report in reports]
        counts: Counter[str] = Counter()
        for known in self.units:
            model = [(r, places) for r, places in asked if _is_of(r, known)]
            these = [places for r, places in model if r.weights == known.weights]
            if not model:
                counts["of models that were not gated"] += 1
            elif not these:
                counts["for other weights"] += 1
            elif not any((known.layer, known.script) in places for places in these):
                counts["of layers or scenarios that were not probed"] += 1
        return counts

    @cached_property
    def _by_key(self) -> dict[Key, KnownUnit]:
        return {known.key: known for known in self.units}

    @cached_property
    def _by_weights(self) -> dict[tuple[str, Place], KnownUnit]:
        return {(k.all_weights, k.place): k for k in self.units if k.all_weights}


def decides(report: ProbeReport, threshold: float, known: KnownUnit) -> bool:
    """Whether a gate can tell that a record of its model's name is not needed any more."""
    # A gate with a higher threshold does not look for the unit, and one that ended early may not
    # have seen enough images to say that it is no longer sensitive.
    if threshold > known.threshold or report.stopped_early:
        return False
    found = [s for place, s in _asked(report).items() if place == (known.layer, known.script)]
    now = ProbeSetting.of(report)
    if not found or known.setting is None or known.setting.is_same(now):
        return bool(found)
    # Under another setting it may be below the threshold by chance.
    (scores,) = found
    if known.index >= len(scores.auroc):
        return True
    d = float(scores.differentiability[known.index])
    return d + known.margin(now, _error(scores, known.index)) < threshold


def _asked(report: ProbeReport) -> dict[tuple[str, str], Scores]:
    return {(plain_text(s.layer), plain_text(s.scenario)): s for s in report}


def _error(scores: Scores, index: int) -> float:
    error = float(scores.standard_error[index])
    return math.inf if math.isnan(error) else error


def _is_of(report: ProbeReport, known: KnownUnit) -> bool:
    return _holds(plain_text(report.model), report.all_weights, known)


def _holds(model: str, all_weights: str, known: KnownUnit) -> bool:
    """Whether a record may be of a model: of its name, or of the same weights by another name."""
    return known.model == model or (known.all_weights == all_weights != "")


def plain_text(text: str) -> str:
    """Return text that a file can hold: lone surrogates are spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()
