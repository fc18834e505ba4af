"""The marker ``wm_mask``: what it asks for, and that its test gets it.

Read when pytest starts: nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import pytest

from pytest_watermark_guard.errors import SettingsError, did_you_mean
from pytest_watermark_guard.setting_values import check_choice, check_threshold, is_number
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, resolve_scenarios

MASK_MARKER = "wm_mask"
MASK_FIXTURE = "wm_mask"
SIGNATURE = (
    f"{MASK_MARKER}(fraction=0.01, scenarios=('chinese',), fixture='backbone', method='mask')"
)
METHODS = ("mask", "erase")
_FRACTION = 0.01


@dataclass(frozen=True)
class MaskRequest:
    """The arguments of one marker."""

    # Which features, as for `FeatureMask.from_report`: one of the three, default fraction 0.01.
    # An erasure takes none of them: it changes all features, by as little as it can.
    fraction: float | None = None
    threshold: float | None = None
    units: tuple[int, ...] | None = None
    scenarios: tuple[str | AnyScenario, ...] = ("chinese",)
    fixture: str = "backbone"
    method: str = "mask"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if not isinstance(self.fixture, str) or not self.fixture:
            raise SettingsError(f"fixture must be a fixture's name, got {self.fixture!r}")
        names = ("fraction", "threshold", "units")
        rules = [name for name in names if getattr(self, name) is not None]
        if self.method == "erase" and rules:
            raise SettingsError(
                f"{rules[0]} chooses units to mask, and method='erase' changes all of them: leave "
                "it out"
            )
        if len(rules) > 1:
            raise SettingsError(
                f"{' and '.join(rules)}: each is a rule of its own, give one of them"
            )
        if self.method == "mask" and not rules:
            object.__setattr__(self, "fraction", _FRACTION)
        fraction = self.fraction
        if fraction is not None and not (is_number(fraction) and 0 <= fraction <= 1):
            raise SettingsError(f"fraction must be a number in [0, 1], got {fraction!r}")
        if self.threshold is not None:
            check_threshold(self.threshold)
        if self.units is not None:
            object.__setattr__(self, "units", _indices(self.units))
        listed = self.scenarios if isinstance(self.scenarios, list | tuple) else (self.scenarios,)
        object.__setattr__(self, "scenarios", tuple(listed))

    @property
    def rule(self) -> dict[str, Any]:
        """The one of fraction, threshold and units that is given, as keyword argument."""
        given = {"fraction": self.fraction, "threshold": self.threshold, "units": self.units}
        return {name: value for name, value in given.items() if value is not None}


def _indices(units: Any) -> tuple[int, ...]:
    listed = units if isinstance(units, Sequence) and not isinstance(units, str) else (units,)
    wrong = [u for u in listed if not isinstance(u, Integral) or isinstance(u, bool) or u < 0]
    if wrong or not listed or len(set(listed)) < len(listed):
        raise SettingsError(
            f"units must be different indices of features, such as [3, 17], got {units!r}"
        )
    return tuple(map(int, listed))


REQUEST = pytest.StashKey[MaskRequest]()


def prepare_item(item: pytest.Item, known: Mapping[str, AnyScenario]) -> None:
    """Have a marked test's model masked before the test, and every fixture of it, sees it.

    Wrong arguments, and a test that cannot be given a masked model, raise `WatermarkGuardError`.
    """
    marker = item.get_closest_marker(MASK_MARKER)
    if marker is None:
        return
    if marker.args:
        raise SettingsError(f"takes keyword arguments only: {SIGNATURE}")
    allowed = [f.name for f in fields(MaskRequest)]
    for name in marker.kwargs:
        if name not in allowed:
            hint = did_you_mean(name, allowed)
            raise SettingsError(f"unknown argument {name!r}; known are {', '.join(allowed)}{hint}")
    request = MaskRequest(**marker.kwargs)
    resolve_scenarios(request.scenarios, known)
    if not isinstance(item, pytest.Function):
        raise SettingsError("is for test functions")
    others = [name for name in item.fixturenames if name != MASK_FIXTURE]
    if request.fixture not in others:
        raise SettingsError(
            f"the test uses no fixture {request.fixture!r}, so there is no model to mask; it uses "
            f"{', '.join(others) or 'none'}{did_you_mean(request.fixture, others) or '.'} "
            "Name one by fixture=, or have the test take it"
        )
    # pytest has no public way to ask; fixture plugins have used this for ten years.
    definitions = item._fixtureinfo.name2fixturedefs
    after = [name for name in others if _needs(definitions, name, request.fixture)]
    for name in after:
        if name != request.fixture and (scope := definitions[name][-1].scope) != "function":
            raise SettingsError(
                f"fixture {name!r} lives for a whole {scope} and is made from "
                f"{request.fixture!r}, which is masked for this test alone: it would see the model "
                f"without the mask, or show the masked one to other tests. Give {name!r} the scope "
                "'function', or use wm.apply_mask in a fixture of your own"
            )
    # A list of this test's own: pytest shares it among the cases of a parametrised test. Whatever
    # does not need the model keeps its turn.
    place = min(map(others.index, after))
    item.fixturenames = [*others[:place], MASK_FIXTURE, *others[place:]]
    item.stash[REQUEST] = request


def _needs(definitions: Mapping[str, Sequence[Any]], name: str, wanted: str) -> bool:
    """Tell whether a fixture is the one that is wanted, or made from it."""
    # One that overrides another may ask for it by their common name.
    todo, seen = [(name, 1)], set()
    while todo:
        name, depth = todo.pop()
        if name == wanted:
            return True
        known = definitions.get(name, ())
        if (name, depth) not in seen and depth <= len(known):
            seen.add((name, depth))
            for other in known[-depth].argnames:
                todo.append((other, depth + 1 if other == name else 1))
    return False
