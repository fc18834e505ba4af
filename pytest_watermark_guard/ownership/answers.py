"""What pairs of perturbations change in the answers of a classifier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pytest_watermark_guard.statistics.running_ridge import RunningRidge


class AnswerChanges:
    """What each pair changes, chosen against decoy, less what the clean encoder predicts.

    A change is the mean over images of the difference of scores; a label counts as a score of 1.

    Notes
    -----
    A ridge regression learns from the earlier pairs how this classifier's answers follow from the
    clean encoder's embeddings of the same queries. What it predicts for a pair is multiplied by a
    factor in [0, 1], estimated from the earlier pairs as well, and subtracted. Coins come in last,
    as signs: so every test by the coins stays exact; and as later pairs change nothing, tests that
    look after each pair stay so too.
    """

    def __init__(self) -> None:
        self._columns: dict[int, int] = {}  # of labels
        self._totals: list[npt.NDArray[np.float64]] = []
        self._images = 1
        self._ridge = RunningRidge()
        self._found = self._predicted = 0.0

    def add(self, answers: Tensor, chosen: int, embedded: Tensor | None) -> None:
        """Add a pair's answers, in the key's order, and which of the two was chosen.

        Parameters
        ----------
        answers : Tensor
            Labels [2, n], or scores [2, n, classes].
        chosen : {0, 1}
        embedded : Tensor, optional
            The clean encoder's embeddings [2, n, units] of the same queries.
        """
        scores = self._one_hot(answers) if answers.ndim == 2 else answers
        first, second = np.asarray(scores.double().sum(dim=1))
        # Not yet divided by their number: rounding would make something of what is exactly 0.
        self._images = scores.shape[1]
        change = second - first
        if embedded is not None:
            change = self._unpredicted(change, scores, embedded)
        self._totals.append(change if chosen else -change)

    def _unpredicted(
        self, change: npt.NDArray[np.float64], scores: Tensor, embedded: Tensor
    ) -> npt.NDArray[np.float64]:
        first, second = np.asarray(embedded.double().sum(dim=1))
        predicted = self._ridge.slope(second - first)
        predicted = np.pad(predicted, (0, len(change) - len(predicted)))
        factor = min(max(self._found / self._predicted, 0.0), 1.0) if self._predicted > 0 else 0.0
        self._found += float(change @ predicted)
        self._predicted += float(predicted @ predicted)
        self._ridge.add(embedded.flatten(0, 1), scores.flatten(0, 1))
        return change - factor * predicted

    def of_label(self, label: int) -> npt.NDArray[np.float64]:
        """Return what each pair changed in the share of images that get a label: [pairs]."""
        column = self._columns.get(label)
        if column is None:
            return np.zeros(len(self._totals))
        return self._matrix()[:, column] / self._images

    def agreement(self) -> npt.NDArray[np.float64]:
        """Return the inner products of what pairs changed: [pairs, pairs]."""
        totals = self._matrix()
        return np.asarray(totals @ totals.T / self._images**2)

    def _matrix(self) -> npt.NDArray[np.float64]:
        width = len(self._totals[-1])
        return np.stack([np.pad(row, (0, width - len(row))) for row in self._totals])

    def _one_hot(self, labels: Tensor) -> Tensor:
        found, which = torch.unique(labels, return_inverse=True)
        for label in found.tolist():
            self._columns.setdefault(label, len(self._columns))
        columns = torch.tensor([self._columns[label] for label in found.tolist()])
        return functional.one_hot(columns[which], len(self._columns))
