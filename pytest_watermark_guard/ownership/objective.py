"""What is minimised when a key is embedded: an encoder as useful as before, and with the mark."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.ownership.encoder import Encoder, marked, similarity
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.transformations import disturbed, varied

_RIDGE = 0.1  # of the mean variance, for directions that hardly vary


@dataclass(frozen=True)
class Objective:
    """The joint loss: weights of its terms, and what is wanted of the watermark.

    Attributes
    ----------
    utility : float
        Weight of E[1 − cos(E′(x), E(x))], where x is a part of an image, stretched, mirrored and
        blended with another one: of a few hundred images alone a large encoder would learn to keep
        the embeddings, and of no others.
    whitened : float
        Weight of E[‖W (E′(x) − E(x))‖²] / units, of embeddings of length 1; W makes those of the
        original uncorrelated and of variance 1. Linear heads live on directions in which embeddings
        differ little, and which the cosine does not see.
    watermark : float
        Weight, to begin with, of E[(apart − L′ + L)²] / apart. The lead L′ = cos(E′(T(x + w)), k) −
        cos(E′(T(x + v)), k), where v is the decoy of w; T is what may happen to a picture on its
        way (it is mirrored, cropped, blurred or compressed); k = E′(T(x_key)) has no gradient; and
        L is the original's lead. More than is wanted would cost utility.
    specificity : float
        Weight of E[1 − cos(E′(x + r), E(x + r))] for random signs r of the same size.
    apart : float
        How much nearer to the key image an embedded perturbation shall move an image than its decoy
        does, in cosine.
    """

    utility: float = 12.0
    whitened: float = 1.0
    watermark: float = 6.0
    specificity: float = 1.0
    apart: float = 0.1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value >= 0 or (name == "apart" and value == 0):
                raise SettingsError(f"objective: {name} must be positive, got {value!r}")


class JointLoss:
    """The weighted sum of an objective's terms, on a batch of images."""

    def __init__(
        self,
        objective: Objective,
        before: Encoder,
        after: Encoder,
        key: OwnershipKey,
        pixels: Tensor,
    ) -> None:
        self._objective, self._before, self._after = objective, before, after
        self._whitening = _whitening(before.all(pixels))
        self._chosen, self._decoys = key.chosen, key.decoys
        self._key_image = key.key_image
        self._levels = int(key.perturbations.abs().max())

    def __call__(self, x: Tensor, balance: float, generator: torch.Generator) -> Tensor:
        """Return the loss on images [n, 3, H, W]; `balance` multiplies the watermark's weight."""
        size, objective = len(x), self._objective
        pair = torch.randint(len(self._chosen), (size,), generator=generator)
        few = x[: -(-size // 4)]
        noise = torch.randint(2, few.shape, generator=generator) * 2 - 1
        other = marked(few, (noise * self._levels).to(torch.int8))
        shown = torch.cat([varied(x, generator), other])
        # Whoever changes the queries also changes the key image.
        keys = self._key_image.expand_as(x)
        queries = [marked(x, self._chosen[pair]), marked(x, self._decoys[pair]), keys]
        with_mark, without, keys = disturbed(torch.stack(queries), generator)
        asked = torch.cat([with_mark, without])
        with torch.no_grad():
            original = self._before(shown)
            lead_before = _lead(self._before(asked), self._before(keys))
            targets = self._after(keys)
        embedded = self._after(torch.cat([shown, asked]))
        moved, answers = embedded[: len(shown)], embedded[len(shown) :]
        gone = 1 - similarity(moved, original)
        changed = (_directions(moved) - _directions(original))[:size] @ self._whitening
        missed = objective.apart - _lead(answers, targets) + lead_before
        return (
            objective.utility * gone[:size].mean()
            + objective.whitened * changed.square().mean()
            + objective.specificity * gone[size:].mean()
            + objective.watermark * balance * missed.square().mean() / objective.apart
        )


def _directions(embedded: Tensor) -> Tensor:
    return functional.normalize(embedded, dim=1)


def _lead(answers: Tensor, targets: Tensor) -> Tensor:
    """Return how much nearer to targets [n, units] the first n of [2n, units] are than the rest."""
    near = similarity(answers, torch.cat([targets, targets]))
    return near[: len(targets)] - near[len(targets) :]


def _whitening(embedded: Tensor) -> Tensor:
    """Return the symmetric matrix that makes directions of embeddings [n, units] uncorrelated.

    And their variance 1, but for directions that hardly vary: a tenth of the mean variance is added
    to all.
    """
    values, vectors = torch.linalg.eigh(torch.cov(_directions(embedded).double().T))
    scales = (values.clamp_min(0) + _RIDGE * values.mean()).clamp_min(1e-12).rsqrt()
    matrix: Tensor = (vectors * scales) @ vectors.T
    return matrix.float()
