"""Units that tell marked images from clean ones, used as detectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.probing.recording import Recording
from pytest_watermark_guard.reports.scores import Scores, SensitiveUnit

UNITS = 12  # of all layers together: more are worse ones


def best_detectors(scores: Iterable[Scores], scenario: str, least: float) -> list[SensitiveUnit]:
    """Return the units of all layers with the highest d under a scenario, if it reaches `least`."""
    of_scenario = [one for one in scores if one.scenario == scenario]
    units = [one.unit(index) for one in of_scenario for index in one.ranking()[:UNITS]]
    units = [unit for unit in units if unit.differentiability >= least]
    return sorted(units, key=lambda unit: -unit.differentiability)[:UNITS]


def of_units(
    recording: Recording, stream: str, units: Sequence[SensitiveUnit]
) -> npt.NDArray[np.float64]:
    """Return the activations of some units, in any layers, on the images of a stream."""
    chosen = np.empty((len(recording), len(units)))
    for layer in {unit.layer for unit in units}:
        places = [place for place, unit in enumerate(units) if unit.layer == layer]
        indices = [units[place].index for place in places]
        chosen[:, places] = recording[stream, layer].chosen(indices)
    return chosen


def reactions(
    activations: npt.NDArray[np.float64], units: Sequence[SensitiveUnit]
) -> npt.NDArray[np.float64]:
    """Return activations of some units, [n, units], high where a mark would move them.

    They are standardised over the images, and turned round for units that marks silence.
    """
    spread = activations.std(axis=0)
    signs = np.where([unit.fires for unit in units], 1.0, -1.0)
    # A unit that never changes has nothing to say.
    scale = signs / np.where(spread > 0, spread, np.inf)
    return np.asarray((activations - activations.mean(axis=0)) * scale)
