"""Units of one layer in two releases: which changed beyond chance, and which cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pytest_watermark_guard.reports.names import unit_label
from pytest_watermark_guard.reports.scores import Scores, SensitiveUnit
from pytest_watermark_guard.reports.text import count
from pytest_watermark_guard.statistics.differences import guarded_error, holm, two_sided_p

LEVEL = 0.05
"""The chance that a comparison names any unit that reacts as before."""
_ERRORS_95 = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True)
class UnitChange:
    """One unit that reacts otherwise than before, beyond chance.

    Attributes
    ----------
    layer, scenario : str
    index : int
    name : str
        The class's name, or the index.
    change : {"rose", "fell", "turned"}
        What d did; ``"turned"``: it fires where it was silenced, or the other way round, and its d
        is what it was.
    before, after : float
        A.
    p_value : float
        Adjusted for the number of units by Holm's method.
    low, high : float
        95 % interval of `after` - `before`, for this unit by itself.
    """

    layer: str
    scenario: str
    index: int
    name: str
    change: Literal["rose", "fell", "turned"]
    before: float
    after: float
    p_value: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """As `SensitiveUnit.label`."""
        return unit_label(self.name, self.index)

    @property
    def difference(self) -> float:
        """How far A moved."""
        return self.after - self.before

    @property
    def d_before(self) -> float:
        """The earlier d."""
        return max(self.before, 1 - self.before)

    @property
    def d_after(self) -> float:
        """The later d."""
        return max(self.after, 1 - self.after)


@dataclass(frozen=True)
class Place:
    """One layer under one scenario, before and after.

    Attributes
    ----------
    layer, scenario : str
    before, after : SensitiveUnit or None
        The unit of the largest d; None: not probed.
    crossed_up, crossed_down : tuple of SensitiveUnit
        Units, as they are after, that reach the threshold and did not, and the other way round,
        be it by chance.
    uncompared : str
        Why its units cannot be compared one by one; empty if they can.
    """

    layer: str
    scenario: str
    before: SensitiveUnit | None
    after: SensitiveUnit | None
    crossed_up: tuple[SensitiveUnit, ...] = ()
    crossed_down: tuple[SensitiveUnit, ...] = ()
    uncompared: str = ""


def place_of(
    where: tuple[str, str], before: Scores | None, after: Scores | None, threshold: float
) -> Place:
    """Put a layer under a scenario side by side, before and after."""
    then = None if before is None else before.strongest()
    now = None if after is None else after.strongest()
    if before is None or after is None:
        missing = "before" if before is None else "after"
        return Place(*where, then, now, uncompared=f"not probed {missing}")
    if why := _unlike(before, after):
        return Place(*where, then, now, uncompared=why)
    reached, reaches = (scores.differentiability >= threshold for scores in (before, after))
    up, down = (
        tuple(after.unit(index) for index in after.ranking() if crossed[index])
        for crossed in (reaches & ~reached, reached & ~reaches)
    )
    return Place(*where, then, now, up, down)


def changes_beyond_chance(pairs: Sequence[tuple[Scores, Scores]]) -> tuple[UnitChange, ...]:
    """Return the units that changed, of all pairs together, by how far their d rose."""
    if not pairs:
        return ()
    errors = [
        # As if the images were independent: where they are the same, the true error is smaller.
        np.hypot(*(guarded_error(s.auroc, s.standard_error, s.n_images) for s in pair))
        for pair in pairs
    ]
    moved = np.concatenate([after.auroc - before.auroc for before, after in pairs])
    adjusted = holm(two_sided_p(moved, np.concatenate(errors)))
    starts = np.cumsum([len(error) for error in errors])[:-1]
    found = [
        _change(before, after, int(index), float(p_values[index]), float(error[index]))
        for (before, after), error, p_values in zip(
            pairs, errors, np.split(adjusted, starts), strict=True
        )
        for index in np.flatnonzero(p_values <= LEVEL)
    ]
    return tuple(sorted(found, key=lambda unit: unit.d_before - unit.d_after))


def _change(before: Scores, after: Scores, index: int, p_value: float, error: float) -> UnitChange:
    then, now = float(before.auroc[index]), float(after.auroc[index])
    rise = max(now, 1 - now) - max(then, 1 - then)
    turned = (then - 0.5) * (now - 0.5) < 0 and abs(rise) < _ERRORS_95 * error
    change: Literal["rose", "fell", "turned"] = "rose" if rise > 0 else "fell"
    names = (after if has_names(after) else before).names
    return UnitChange(
        after.layer,
        after.scenario,
        index,
        names[index],
        "turned" if turned else change,
        then,
        now,
        p_value,
        max(-1.0, now - then - _ERRORS_95 * error),
        min(1.0, now - then + _ERRORS_95 * error),
    )


def _unlike(before: Scores, after: Scores) -> str:
    """Say why the units of two layers are not each other's; empty if they are."""
    if len(before.names) != len(after.names):
        return f"{count(len(before.names), 'unit')} before, {len(after.names):,} after"
    if before.names != after.names and has_names(before) and has_names(after):
        others = [(b, a) for b, a in zip(before.names, after.names, strict=True) if b != a]
        return (
            f"{len(others):,} of {count(len(before.names), 'unit')} had other names, as "
            f"{others[0][0]!r} for {others[0][1]!r}"
        )
    return ""


def has_names(scores: Scores) -> bool:
    """Whether a layer's units have names beside their numbers."""
    return any(name != str(index) for index, name in enumerate(scores.names))
