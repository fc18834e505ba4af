"""A gate that ends a probe as soon as its verdict is certain enough."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.probing.names import allowed_units
from pytest_watermark_guard.probing.recording import Activations, Names
from pytest_watermark_guard.reports.early_stop import Decision, EarlyStop, verdict_on_all
from pytest_watermark_guard.reports.scores import Scores
from pytest_watermark_guard.statistics.sequential import ScorePair, SequentialGate
from pytest_watermark_guard.watermarks.streams import UNMARKED

Key = tuple[str, str]
"""Layer and scenario."""


class EarlyGate:
    """Watches a probe's activations as they come in.

    Parameters
    ----------
    threshold : float
        On d.
    error : float
        Chance of a verdict other than that of all images.
    allow : mapping of str to str
        Units that the gate leaves aside; see `judge`.
    images : int
        How many there are.
    seed : int
    each : bool, default False
        Wait for a verdict on every layer and scenario, at `error` for all of them together; else
        one verdict on the whole is enough.
    """

    def __init__(
        self,
        threshold: float,
        error: float,
        allow: Mapping[str, str],
        images: int,
        seed: int,
        each: bool = False,
    ) -> None:
        self._threshold = threshold
        self._error = error
        self._allow = allow
        self._images = images
        self._seed = seed
        self._each = each
        self._exempt: dict[Hashable, npt.NDArray[np.bool_]] = {}
        self._gates: dict[tuple[Key, ...], SequentialGate] = {}

    @property
    def terms(self) -> tuple[Any, ...]:
        """What its verdict depends on beside the activations."""
        allow = tuple(sorted(self._allow.items()))
        return self._threshold, self._error, allow, self._seed, self._each

    def decided(self, activations: Activations, names: Names, scenarios: Sequence[str]) -> bool:
        """Take the next images, and tell whether the verdict is certain enough."""
        if not self._gates:
            self._begin(names, scenarios)
        for keys, gate in self._gates.items():
            scores: dict[Hashable, ScorePair] = {
                (layer, scenario): (activations[UNMARKED, layer], activations[scenario, layer])
                for layer, scenario in keys
            }
            gate.update(scores, self._exempt)
        return self.used is not None

    def _begin(self, names: Names, scenarios: Sequence[str]) -> None:
        keys = [(layer, scenario) for layer in names for scenario in scenarios]
        for layer, scenario in keys:
            self._exempt[layer, scenario] = allowed_units(layer, names[layer], self._allow)
        groups = [(key,) for key in keys] if self._each else [tuple(keys)]
        error = self._error / len(groups)
        for group in groups:
            gate = SequentialGate(self._threshold, error, self._images, self._seed)
            self._gates[group] = gate

    @property
    def used(self) -> int | None:
        """Number of images that the verdict took; None while there is none."""
        if any(gate.verdict is None for gate in self._gates.values()):
            return None
        return max(gate.n_images for gate in self._gates.values())

    def confirmed_by(self, scores: Mapping[Key, Scores]) -> bool:
        """Tell whether the scores of the images so far say what the gate says, if it does."""
        for keys, gate in self._gates.items():
            sensitive = any(
                ((scores[key].differentiability >= self._threshold) & ~self._exempt[key]).any()
                for key in keys
            )
            if gate.verdict not in (None, "sensitive" if sensitive else "clean"):
                return False
        return True

    def outcome(self, confirmed: bool = True) -> EarlyStop:
        """Return what the report says about it."""
        decisions = {
            keys: Decision(gate.verdict, gate.n_images)
            if confirmed and gate.verdict is not None
            else Decision(None, self._images)
            for keys, gate in self._gates.items()
        }
        verdict = verdict_on_all(decisions.values())
        each = {keys[0]: decision for keys, decision in decisions.items()} if self._each else {}
        return EarlyStop(self._threshold, self._error, verdict, self._images, each)
