"""What cached entries must hold: whoever can write to the folder may have put anything there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts; `ValueError` for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("no list of texts")
    return tuple(value)


def text(value: Any) -> str:
    """Return a text; `ValueError` for anything else."""
    if not isinstance(value, str):
        raise ValueError("no text")
    return value


def are_activations(array: npt.NDArray[Any]) -> bool:
    """Tell whether an array is finite activations, [n, units]."""
    if array.ndim != 2 or array.dtype not in (np.float32, np.float64) or not array.size:
        return False
    return bool(np.isfinite(array).all())


def are_scores(array: npt.NDArray[Any]) -> bool:
    """Tell whether an array is areas and errors, one of each for each unit, and two bounds."""
    if array.ndim != 1 or array.dtype != np.float64 or len(array) % 2 or len(array) < 4:
        return False
    area, error = np.split(array[:-2], 2)
    low, high = array[-2:]
    return bool(
        ((area >= 0) & (area <= 1)).all() and not (error < 0).any() and 0 <= low <= high <= 1
    )
