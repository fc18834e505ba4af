"""Ridge regression on samples that come in parts, asked for a prediction at any time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_PENALTY = 0.1  # of the mean variance of a unit


class RunningRidge:
    """Predicts targets from units by what was added before; nothing before the first part.

    Least squares with an intercept and a penalty on the squares of the weights: a tenth of the mean
    variance of a unit, for each sample. It keeps sums over samples, and none of these.
    """

    def __init__(self) -> None:
        self._samples = 0

    def add(self, units: npt.ArrayLike, targets: npt.ArrayLike) -> None:
        """Learn from samples: float [n, units] and [n, targets].

        Later parts may have more targets: those were 0 before.
        """
        x, y = (np.asarray(values, dtype=np.float64) for values in (units, targets))
        if not self._samples:
            self._origin = x.mean(axis=0)  # sums of squares about it lose fewer digits
            self._x, self._y = np.zeros(x.shape[1]), np.zeros(y.shape[1])
            self._xx, self._xy = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], y.shape[1]))
        more = y.shape[1] - len(self._y)
        self._y, self._xy = np.pad(self._y, (0, more)), np.pad(self._xy, ((0, 0), (0, more)))
        x = x - self._origin
        self._samples += len(x)
        self._x += x.sum(axis=0)
        self._y += y.sum(axis=0)
        self._xx += x.T @ x
        self._xy += x.T @ y

    def slope(self, shift: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return by how much targets [targets] differ where units differ by a shift [units]."""
        if not self._samples:
            return np.zeros(0)
        covariance = self._xx / self._samples - np.outer(self._x, self._x) / self._samples**2
        cross = self._xy / self._samples - np.outer(self._x, self._y) / self._samples**2
        penalty = _PENALTY * covariance.trace() / len(covariance)
        if not penalty > 0:  # no unit varies, and nothing is known
            return np.zeros(cross.shape[1])
        covariance[np.diag_indices_from(covariance)] += penalty
        return np.asarray(np.asarray(shift) @ np.linalg.solve(covariance, cross))
