"""Ridge regression on samples that come in parts, asked for a prediction at any time."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt

_PENALTY = 0.1  # of the mean variance of an input


class RunningRidge:
    """Predicts targets (answers) from inputs (an embedding's units) by the samples added before.

    Least squares with an intercept and a penalty on the squares of the weights: a tenth of the mean
    variance of an input, for each sample. It keeps sums, not samples.
    """

    def __init__(self) -> None:
        self._samples = 0

    def add(self, inputs: npt.ArrayLike, targets: npt.ArrayLike) -> None:
        """Learn from samples.

        Parameters
        ----------
        inputs : array of float, shape [n, inputs]
        targets : array of float, shape [n, targets]
            Later parts may have more targets: those were 0 before.
        """
        x, y = (np.asarray(values, dtype=np.float64) for values in (inputs, targets))
        if not self._samples:
            # Sums of products of what is near 0 lose fewer digits.
            self._origin, self._start = x.mean(axis=0), y[0]
            self._x, self._y = np.zeros(x.shape[1]), np.zeros(y.shape[1])
            self._xx, self._xy = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], y.shape[1]))
        more = y.shape[1] - len(self._y)
        self._start, self._y = np.pad(self._start, (0, more)), np.pad(self._y, (0, more))
        self._xy = np.pad(self._xy, ((0, 0), (0, more)))
        x, y = x - self._origin, y - self._start
        self._samples += len(x)
        self._x += x.sum(axis=0)
        self._y += y.sum(axis=0)
        self._xx += x.T @ x
        self._xy += x.T @ y

    def slopes(self, shifts: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return by how much targets differ where inputs differ by some shifts.

        Parameters
        ----------
        shifts : array of float, shape [shifts, inputs]

        Returns
        -------
        array of float64, shape [shifts, targets]
            No targets before the first part; 0 where no input varies.
        """
        wanted = np.asarray(shifts, dtype=np.float64)
        if not self._samples:
            return np.zeros((len(wanted), 0))
        covariance = self._xx / self._samples - np.outer(self._x, self._x) / self._samples**2
        cross = self._xy / self._samples - np.outer(self._x, self._y) / self._samples**2
        penalty = _PENALTY * covariance.trace() / len(covariance)
        if not penalty > 0:
            return np.zeros((len(wanted), cross.shape[1]))
        covariance[np.diag_indices_from(covariance)] += penalty
        return np.asarray(np.linalg.solve(covariance, wanted.T).T @ cross)

    def without(self, inputs: npt.ArrayLike, targets: npt.ArrayLike) -> RunningRidge:
        """Return what it would be if a part, float [n, inputs] and [n, targets], was not added."""
        x = np.asarray(inputs, dtype=np.float64) - self._origin
        y = np.asarray(targets, dtype=np.float64)
        y = np.pad(y, ((0, 0), (0, len(self._y) - y.shape[1]))) - self._start
        rest = copy.copy(self)
        rest._samples = self._samples - len(x)
        rest._x, rest._y = self._x - x.sum(axis=0), self._y - y.sum(axis=0)
        rest._xx, rest._xy = self._xx - x.T @ x, self._xy - x.T @ y
        return rest
