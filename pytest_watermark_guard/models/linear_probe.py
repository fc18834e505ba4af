"""Linear heads on the same features, for one mask after the other.

Multinomial logistic regression with an L2 penalty: what people train on a frozen backbone, with an
optimum that does not depend on how it is reached.

It is reached in few steps. With features X of n images, penalty λ and G = c XᵀX / n + λI = L Lᵀ,
the weights are W = L⁻ᵀ V, and what is solved for is V, on Z = X L⁻ᵀ: c XᵀX / n is about the
curvature of the log loss, so that all directions of V curve alike. The penalty λ|W|² is
|V|² − c |ZV|² / n, and ZV is at hand.

Masks of a ranking are nested. With the units in the order in which they are kept, L and Z of a mask
are the first rows and columns of L and Z of all units, and the first rows of V are, of all heads
without the masked units, the nearest to V's: each head starts there, and has little left to do.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Floats = npt.NDArray[np.float32]

PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""What the penalty is chosen from, of features with a mean variance of 1."""

_HELD_OUT = 0.2  # of the images of each class choose the penalty
_CURVATURE = 0.01  # c above, roughly that of the log loss; it changes the speed, not the optimum
_TOLERANCE = 1e-4  # of the gradient; a tenth of it changes no accuracy by more than one image
_ITERATIONS = 500
_MEMORY = 20  # steps that L-BFGS learns the curvature from


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier.

    Attributes
    ----------
    weight : ndarray of float32, shape [units, classes]
    bias : ndarray of float32, shape [classes]
    """

    weight: Floats
    bias: Floats

    def __call__(self, features: Floats) -> Floats:
        """Return logits [n, classes] for features [n, units]."""
        logits: Floats = features @ self.weight + self.bias
        return logits


class HeadTrainer:
    """Trains heads on one set of features.

    Parameters
    ----------
    features : ndarray of float32, shape [n, units]
    labels : ndarray of int, shape [n]
        From 0 to classes − 1.
    classes : int
    seed : int
        Chooses the images that choose the penalty.

    Attributes
    ----------
    penalty : float
        Of `PENALTIES`, the strongest that does as well as any on images held out.
    """

    def __init__(
        self, features: Floats, labels: npt.NDArray[np.int64], classes: int, seed: int
    ) -> None:
        self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = features - self._mean
        self._scale = float(np.sqrt(np.square(centred, dtype=np.float64).mean())) or 1.0
        self._inputs = torch.from_numpy(centred / np.float32(self._scale))
        self._labels = torch.from_numpy(labels)
        self._classes = classes
        self.penalty, self._chosen = self._choose(seed)

    def _choose(self, seed: int) -> tuple[float, Tensor]:
        """Return a penalty, and the weights that it led to on a part of the images.

        It is the strongest whose loss on the others is within a standard error of the least
        (Breiman et al., 1984, section 3.4.3).
        """
        held_out = _stratified(self._labels.numpy(), seed)
        fitted, rest = (torch.from_numpy(np.flatnonzero(m)) for m in (~held_out, held_out))
        inputs, labels = self._inputs[fitted], self._labels[fitted]
        gram = _gram(inputs)
        solution = torch.zeros(self._inputs.shape[1] + 1, self._classes)
        tried = []
        for penalty in PENALTIES:  # from strong to weak, each from the one before
            problem = _Problem(inputs, labels, penalty, gram)
            solution = problem.weights(problem.solve(problem.start(solution)))
            logits = torch.addmm(solution[-1], self._inputs[rest], solution[:-1])
            losses = functional.cross_entropy(logits, self._labels[rest], reduction="none")
            error = float(losses.std(correction=0)) / max(len(losses), 1) ** 0.5
            tried.append((float(losses.mean()), error, penalty, solution))
        least, error, penalty, solution = min(tried, key=lambda item: item[0])
        within = ((p, s) for loss, _, p, s in tried if loss <= least + error)
        return next(within, (penalty, solution))

    def nested(self, order: Sequence[int], counts: Sequence[int]) -> Iterator[LinearHead]:
        """Train a head for each mask.

        Parameters
        ----------
        order : sequence of int
            All units; a mask takes the first ones.
        counts : sequence of int
            How many each takes, ascending.
        """
        least_first = np.array(order[::-1])  # so that the units that stay are the first columns
        rows = torch.from_numpy(np.append(least_first, len(least_first)))
        inputs = self._inputs[:, rows[:-1]]
        problem = _Problem(inputs, self._labels, self.penalty, _gram(inputs))
        solution = problem.start(self._chosen[rows])
        for count in counts:
            left = len(order) - count
            problem = problem.first(left)
            solution = problem.solve(torch.cat([solution[:left], solution[-1:]]))
            yield self._head(least_first[:left], problem.weights(solution))

    def on(self, features: Floats) -> LinearHead:
        """Train a head on the same images' features after another intervention."""
        inputs = torch.from_numpy((features - self._mean) / np.float32(self._scale))
        problem = _Problem(inputs, self._labels, self.penalty, _gram(inputs))
        weights = problem.weights(problem.solve(problem.start(self._chosen)))
        return self._head(np.arange(features.shape[1]), weights)

    def _head(self, units: npt.NDArray[np.int64], solution: Tensor) -> LinearHead:
        weight = np.zeros((len(self._mean), self._classes), np.float32)
        weight[units] = solution[:-1].numpy() / self._scale
        return LinearHead(weight, solution[-1].numpy() - self._mean @ weight)


def _gram(inputs: Tensor) -> Tensor:
    """Return XᵀX / n."""
    return inputs.T @ inputs / len(inputs)


class _Problem:
    """Mean log loss + penalty / 2 · |weight|², of rows: units' weights, then the bias."""

    def __init__(self, inputs: Tensor, labels: Tensor, penalty: float, gram: Tensor) -> None:
        curvature = _CURVATURE * gram.double() + penalty * torch.eye(len(gram), dtype=torch.float64)
        self._root = torch.linalg.cholesky(curvature).float()
        self._inputs = torch.linalg.solve_triangular(self._root, inputs.T, upper=False).T
        self._labels = labels

    def first(self, units: int) -> _Problem:
        """Return the problem of the first units alone."""
        problem = copy.copy(self)
        problem._root = self._root[:units, :units]
        problem._inputs = self._inputs[:, :units].contiguous()
        return problem

    def start(self, weights: Tensor) -> Tensor:
        """Return what `solve` starts from for these weights."""
        return torch.cat([self._root.T @ weights[:-1], weights[-1:]])

    def weights(self, solution: Tensor) -> Tensor:
        """Return the weights that a solution of `solve` stands for."""
        units = torch.linalg.solve_triangular(self._root.T, solution[:-1], upper=True)
        return torch.cat([units, solution[-1:]])

    def solve(self, start: Tensor) -> Tensor:
        """Return where the minimum is, as V and the bias."""
        inputs, n = self._inputs, len(self._inputs)
        solution = start.clone().requires_grad_()
        targets = functional.one_hot(self._labels, start.shape[1]).to(inputs.dtype)
        optimizer = torch.optim.LBFGS(
            [solution],
            max_iter=_ITERATIONS,
            tolerance_grad=_TOLERANCE,
            history_size=_MEMORY,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def loss() -> float:
            # The gradient in closed form: half the time of autograd's.
            units, bias = solution[:-1], solution[-1]
            scores = inputs @ units
            log_shares = (scores + bias).log_softmax(dim=1)
            error = log_shares.exp() - targets
            slope = torch.addmm(units, inputs.T, error - _CURVATURE * scores, alpha=1 / n)
            solution.grad = torch.cat([slope, error.sum(dim=0, keepdim=True) / n])
            fit = -(log_shares * targets).sum() / n
            size = units.square().sum() - _CURVATURE / n * scores.square().sum()
            return float(fit + size / 2)

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        return solution.detach()


def _stratified(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """Mark a part of each class's images, at least one, and none of a class with one alone."""
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = max(1, round(_HELD_OUT * len(members))) if len(members) > 1 else 0
        held_out[members[:count]] = True
    return held_out
