"""What pairs of perturbations change in the answers of a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pytest_watermark_guard.statistics.running_ridge import RunningRidge

_MOST = 2.0  # times what was predicted: a ridge makes its slopes smaller


@dataclass(frozen=True)
class AnswerChanges:
    """What each pair changes, chosen against decoy: the mean over images of scores.

    Attributes
    ----------
    totals : ndarray of float64, shape [pairs, classes]
        Sums over images; a label counts as a score of 1.
    images : int
    columns : mapping of int to int
        Where a label is among the classes.
    """

    totals: npt.NDArray[np.float64]
    images: int
    columns: Mapping[int, int]

    def of_label(self, label: int) -> npt.NDArray[np.float64]:
        """Return what each pair changed in the share of images that get a label: [pairs]."""
        column = self.columns.get(label)
        if column is None:
            return np.zeros(len(self.totals))
        return self.totals[:, column] / self.images

    def agreement(self) -> npt.NDArray[np.float64]:
        """Return the inner products of what pairs changed: [pairs, pairs]."""
        # Divided last: rounding would make something of what is exactly 0.
        return np.asarray(self.totals @ self.totals.T / self.images**2)


class PairAnswers:
    """The answers to a key's pairs, one after the other, and what the clean encoder predicts.

    Notes
    -----
    A ridge regression learns how this classifier's answers follow from the clean encoder's
    embeddings of the same queries. What it predicts for a pair is multiplied by a factor in [0, 2],
    estimated from what was predicted and found, and subtracted. A pair is predicted by others, as
    of itself it would predict the mark, too. Coins come in last, as signs, and nothing else depends
    on them: so every test by the coins stays exact.
    """

    def __init__(self) -> None:
        self._columns: dict[int, int] = {}  # of labels
        self._signs: list[float] = []
        self._found: list[npt.NDArray[np.float64]] = []  # second less first, added up over images
        self._samples: list[tuple[Tensor, Tensor]] = []  # embeddings and scores of queries
        self._shifts: list[npt.NDArray[np.float64]] = []  # of embeddings, like what was found
        self._before: list[npt.NDArray[np.float64]] = []  # what earlier pairs predict of it
        self._images = 1
        self._ridge = RunningRidge()

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
        self._images = scores.shape[1]
        self._found.append(second - first)
        self._signs.append(1.0 if chosen else -1.0)
        if embedded is not None:
            first, second = np.asarray(embedded.double().sum(dim=1))
            self._shifts.append(second - first)
            self._before.append(self._ridge.slopes([second - first])[0])
            self._samples.append((embedded.flatten(0, 1), scores.flatten(0, 1)))
            self._ridge.add(*self._samples[-1])

    def so_far(self) -> AnswerChanges:
        """Return what each pair changed, less what those before it predict.

        Later pairs change nothing, so that tests which look after each pair stay exact.
        """
        found, predicted = self._in_columns(self._found), self._in_columns(self._before)
        both, alone = ((p * predicted).sum(axis=1).cumsum() for p in (found, predicted))
        factors = np.array([0.0, *map(_factor, both[:-1], alone[:-1])])
        return self._changes(found - factors[:, None] * predicted)

    def whole(self) -> AnswerChanges:
        """Return what each pair changed, less what all others predict: for a test at the end."""
        found = self._in_columns(self._found)
        # Of itself a pair would predict a part of the mark, too.
        predicted = self._in_columns([
            self._ridge.without(*sample).slopes([shift])[0]
            for sample, shift in zip(self._samples, self._shifts, strict=True)
        ])  # fmt: skip
        factor = _factor(float((found * predicted).sum()), float(np.square(predicted).sum()))
        return self._changes(found - factor * predicted)

    def _changes(self, left: npt.NDArray[np.float64]) -> AnswerChanges:
        return AnswerChanges(np.array(self._signs)[:, None] * left, self._images, {**self._columns})

    def _in_columns(self, rows: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """Return rows as [pairs, classes]: what came later was 0 before; no rows are zeros."""
        width = len(self._found[-1])
        padded = [np.pad(row, (0, width - len(row))) for row in rows]
        return np.stack(padded) if padded else np.zeros((len(self._found), width))

    def _one_hot(self, labels: Tensor) -> Tensor:
        found, which = torch.unique(labels, return_inverse=True)
        for label in found.tolist():
            self._columns.setdefault(label, len(self._columns))
        columns = torch.tensor([self._columns[label] for label in found.tolist()])
        return functional.one_hot(columns[which], len(self._columns))


def _factor(both: float, alone: float) -> float:
    """Return how many times what was predicted was found: products of the two, and its squares."""
    return min(max(both / alone, 0.0), _MOST) if alone > 0 else 0.0
