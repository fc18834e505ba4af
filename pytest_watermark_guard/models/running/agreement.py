"""How much another way to run a model moves A, estimated on a few inputs.

By ranks: A only depends on which of two activations is larger. What counts is how often a pair
changes its order, not how large a difference is beside the spread of a unit that hardly ever fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.floating]
Activations = dict[str, Floats]

FLOAT32_ROUNDING = 1e-3, 1e-4
"""Of an activation's own size, and of its layer's root mean square.

More than the order of a sum makes in float32, far less than what moves A.
"""

USUAL, LARGEST = 0.005, 0.01
"""How far A may be moved: at 95 % of all units, and at any."""

MOST_ROWS = 64
"""That are compared, all pairs of them."""

# Activations that differ by less than this share of the unit's largest are equal but for rounding.
_ROUNDING = 1e-5
_DOUBTFUL = 2.0  # times what is accepted: a batch may tell so much of what moves A by far less
_BEYOND_CHANCE = 4.0  # standard errors; among thousands of units, some exceed three
_MOST_IMAGES = 16


class Shift(NamedTuple):
    """How far A is moved, by estimate.

    Attributes
    ----------
    usual : float
        Of 95 % of all units, at most.
    largest : float
        Of any unit.
    """

    usual: float
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether both are small enough."""
        return self.usual <= USUAL and self.largest <= LARGEST

    @property
    def is_doubtful(self) -> bool:
        """Whether more inputs may show that it agrees after all."""
        near = self.usual <= _DOUBTFUL * USUAL and self.largest <= _DOUBTFUL * LARGEST
        return near and not self.agrees


class UnitShifts(NamedTuple):
    """How far A of each unit is moved, by estimate from one batch; see `estimated_shifts`.

    Attributes
    ----------
    noise : ndarray of float64, shape [units]
        The most that pairs which change their order, either way, can move A by.
    drift, error : ndarray of float64, shape [units]
        By how much more of them change it one way than the other, and its standard error.
    """

    noise: Floats
    drift: Floats
    error: Floats


def summarised(batches: Sequence[UnitShifts]) -> Shift:
    """Return what one or several batches tell of the worst units.

    From few inputs estimates are so rough that the largest of thousands is several times too large;
    that of the means over several batches is less so.
    """
    noise, drift, error = (np.array(parts) for parts in zip(*batches, strict=True))
    chance = _BEYOND_CHANCE * np.sqrt(np.square(error).mean(axis=0) / len(batches))
    shifts = noise.mean(axis=0) + np.maximum(np.abs(drift.mean(axis=0)) - chance, 0.0)
    return Shift(float(np.quantile(shifts, 0.95, method="higher")), float(shifts.max()))


def estimated_shifts(expected: Activations, computed: Activations, streams: int = 1) -> UnitShifts:
    """Estimate how far A of each unit is moved.

    Parameters
    ----------
    expected, computed : dict of str to ndarray, shape [n, units]
        The same inputs' activations by layer: as they are wanted, and in the other way.
    streams : int, default 1
        The rows are so many times the same images, in order; the first time without a mark.

    Returns
    -------
    UnitShifts
        Of all layers, one after the other; infinite where something computed is no number.

    Notes
    -----
    Two things move A. Noise makes pairs change their order either way: noise of r standard
    deviations of a normal unit swaps a share arctan(r) / π of all pairs, and moves a binormal
    A = Φ(z) to Φ(z / √(1 + r²)). From the share that is seen follows r, and from that the most that
    any A can be moved. And a drift that marked inputs have and clean ones do not makes more pairs
    of a clean and a marked input change one way than the other: what is seen of that beyond four
    standard errors is added.
    """
    by_layer = []
    for layer, wanted in expected.items():
        if not (np.isfinite(wanted).all() and np.isfinite(computed[layer]).all()):
            units = sum(wanted.shape[1] for wanted in expected.values())
            return UnitShifts(np.full(units, np.inf), np.zeros(units), np.zeros(units))
        # In double precision: large activations must not overflow, nor close ones be equal.
        before, after = wanted.astype(np.float64), computed[layer].astype(np.float64)
        equal = _ROUNDING * np.abs(before).max(axis=0)
        by_layer.append(
            UnitShifts(
                _noise(before, after, equal, streams), *_drift(before, after, equal, streams)
            )
        )
    return UnitShifts(*map(np.concatenate, zip(*by_layer, strict=True)))


def are_equal(expected: Activations, computed: Activations) -> bool:
    """Tell whether activations, by layer, are equal but for the rounding of float32."""
    return all(are_close(units, computed[layer]) for layer, units in expected.items())


def are_close(
    expected: Floats, computed: Floats, within: tuple[float, float] = FLOAT32_ROUNDING
) -> bool:
    """Tell whether a layer's activations, of one shape, are apart by so much at most.

    `within` is a share of each activation's own size, and one of all their root mean square.
    """
    share, layer_share = within
    scale = np.sqrt(np.square(expected.astype(np.float64)).mean())
    # NaN compares false with everything: it must not pass for close.
    apart = np.abs(computed - expected)
    return bool((apart <= share * np.abs(expected) + layer_share * scale).all())


def _noise(before: Floats, after: Floats, equal: Floats, streams: int) -> Floats:
    """Return the most that pairs which change their order, either way, can move A by."""
    images = max(1, len(before) // streams)
    rows = np.unique(np.linspace(0, len(before) - 1, MOST_ROWS).astype(int))
    swapped, pairs = np.zeros(before.shape[1]), 0
    for number, row in enumerate(rows):
        later = rows[number + 1 :]
        others = later[later % images != row % images]  # one image under two marks is no sample
        pairs += len(others)
        changes = _order(after[others], after[row], equal)
        changes -= _order(before[others], before[row], equal)
        swapped += np.abs(changes).sum(axis=0) / 2  # an order becomes equal: half of a swap
    # Half of all pairs are swapped where nothing is left of an order.
    ratio = np.tan(np.pi * np.minimum(swapped / max(1, pairs), 0.499))
    return _most_moved(ratio)


def _most_moved(ratio: Floats) -> Floats:
    """Return the maximum over z of Φ(z) − Φ(z / √(1 + r²)): there, both have the same slope."""
    wider = 1 + np.square(np.maximum(ratio, 1e-6))
    z = np.sqrt(wider * np.log(wider) / (wider - 1))
    areas = torch.special.ndtr(torch.from_numpy(np.stack([z, z / np.sqrt(wider)]))).numpy()
    moved: Floats = np.where(ratio < 1e-6, 0.0, areas[0] - areas[1])
    return moved


def _drift(before: Floats, after: Floats, equal: Floats, streams: int) -> tuple[Floats, Floats]:
    """Return how far pairs of a clean and a marked input move A, and the standard error of that."""
    images, units = len(before) // streams, before.shape[1]
    used = min(images, _MOST_IMAGES)
    if streams < 2 or used < 3:
        return np.zeros(units), np.zeros(units)
    old, new = (a.reshape(streams, images, units)[:, :used] for a in (before, after))
    # [clean image, marked image, units]: how A changes by the pairs of the two, over all marks.
    net = np.stack(
        [
            (_order(new[1:], new[0, i], equal) - _order(old[1:], old[0, i], equal)).mean(axis=0) / 2
            for i in range(used)
        ]
    )
    moved = net.mean(axis=(0, 1))
    of_image = net.mean(axis=0) + net.mean(axis=1) - 2 * moved
    return moved, np.sqrt(np.square(of_image).sum(axis=0) / (used * (used - 1)))


def _order(first: Floats, second: Floats, equal: Floats) -> Floats:
    """Return 1 where the first is larger, -1 where the second is, and 0 where they are equal."""
    apart = first - second
    order: Floats = np.sign(apart) * (np.abs(apart) > equal)
    return order
