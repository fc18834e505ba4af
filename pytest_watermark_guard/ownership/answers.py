"""What pairs of perturbations change in the answers of a classifier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pytest_watermark_guard.statistics.running_ridge import RunningRidge


class AnswerChanges:
    """What each pair changes, chosen against decoy, less what the clean encoder lets expect of it.

    A change is the mean over images of the difference of scores; a label counts as a score of 1.

    Notes
    -----
    What is expected of a pair is what a ridge regression predicts that has learned, from the pairs
    before it, how this classifier's answers follow from the clean encoder's embeddings of the same
    queries. It is subtracted in the share, in [0, 1], in which it was found in the pairs before.
    Coins come in last, as signs: so every test by the coins stays exact; and as later pairs change
    nothing, tests that look after each pair stay so too.
    """

    def __init__(self) -> None:
        self._columns: dict[int, int] = {}  # of labels
        self._rows: list[npt.NDArray[np.float64]] = []
        self._ridge = RunningRidge()
        self._found = self._foreseen = 0.0

    def add(self, answers: Tensor, chosen: int, embedded: Tensor | None) -> None:
        """Add a pair's answers, in the key's order, and which of the two was chosen.

        Answers are labels [2, n] or scores [2, n, classes]; `embedded`, if known, the clean
        encoder's embeddings [2, n, units] of the same queries.
        """
        scores = self._one_hot(answers) if answers.ndim == 2 else answers
        # Whole numbers are added up: what rounding leaves of a zero would count, whatever the coin.
        totals = scores.double().sum(dim=1)
        change = np.asarray(totals[1] - totals[0]) / scores.shape[1]
        if embedded is not None:
            change = self._surprise(change, scores, embedded)
        self._rows.append(change if chosen else -change)

    def _surprise(
        self, change: npt.NDArray[np.float64], scores: Tensor, embedded: Tensor
    ) -> npt.NDArray[np.float64]:
        first, second = np.asarray(embedded.double().mean(dim=1))
        expected = self._ridge.slope(second - first)
        expected = np.pad(expected, (0, len(change) - len(expected)))
        share = min(max(self._found / self._foreseen, 0.0), 1.0) if self._foreseen > 0 else 0.0
        self._found += float(change @ expected)
        self._foreseen += float(expected @ expected)
        self._ridge.add(embedded.flatten(0, 1), scores.flatten(0, 1))
        return change - share * expected

    def of(self, label: int) -> npt.NDArray[np.float64]:
        """Return what all pairs changed in the share of images that get a label: [pairs]."""
        column = self._columns.get(label)
        return self._matrix()[:, column] if column is not None else np.zeros(len(self._rows))

    def agreement(self) -> npt.NDArray[np.float64]:
        """Return the inner products of what pairs changed: [pairs, pairs]."""
        changes = self._matrix()
        return np.asarray(changes @ changes.T)

    def _matrix(self) -> npt.NDArray[np.float64]:
        width = len(self._rows[-1])
        return np.stack([np.pad(row, (0, width - len(row))) for row in self._rows])

    def _one_hot(self, labels: Tensor) -> Tensor:
        for label in torch.unique(labels).tolist():
            self._columns.setdefault(label, len(self._columns))
        found, which = torch.unique(labels, return_inverse=True)
        columns = torch.tensor([self._columns[label] for label in found.tolist()])
        return functional.one_hot(columns[which], len(self._columns))
