"""A key put to one model after the other, pair by pair, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import OwnershipError, SettingsError, WatermarkGuardError
from pytest_watermark_guard.models.device import computing_in
from pytest_watermark_guard.models.loading.introspection import resolve_preprocessing
from pytest_watermark_guard.models.loading.loading import LoadedModel, as_loaded
from pytest_watermark_guard.models.state import runnable_on
from pytest_watermark_guard.ownership.answers import AnswerChanges, PairAnswers
from pytest_watermark_guard.ownership.encoder import (
    Encoder,
    Response,
    in_order,
    opened,
    read_pixels,
    settings_and_device,
    similarity,
)
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.reports.ownership import OwnershipReport
from pytest_watermark_guard.setting_values import plain_integer
from pytest_watermark_guard.statistics.levels import check_reachable
from pytest_watermark_guard.statistics.sign_flips import (
    agreement_gains,
    agreement_p_value,
    less_expected,
    sign_flip_e_values,
    sign_flip_p_value,
)
from pytest_watermark_guard.version import __version__

N_IMAGES = 16  # of images that are not the key's


class Trial:
    """A key, and the images and the device that it is tried with: on a model and on its nulls."""

    def __init__(
        self,
        key: OwnershipKey,
        *,
        images: Any,
        n_images: int | None,
        pairs: range | None,
        preprocess: Any,
        device: str | torch.device | None,
        stop_at: float | None = None,
        clean_encoder: nn.Module | str | None = None,
    ) -> None:
        key.check_drawn()
        settings, self._device = settings_and_device(images=images, device=device)
        if n_images is not None:
            plain_integer("n_images", n_images, least=1)
        self.key, self._hash = key, key.hash
        self._preprocess, self._stop_at = preprocess, stop_at
        self._pairs = _chosen_pairs(pairs, key)
        if stop_at is not None:
            check_reachable(stop_at, len(self._pairs), 2.0 ** -len(self._pairs))
        own = images is None and len(key.images) > 0
        if own:
            if (n_images or 0) > len(key.images):
                raise SettingsError(
                    f"n_images: the key holds {len(key.images)} images, and {n_images} are wanted"
                )
            self.pixels = key.images[:n_images]
            self._described = f"{len(self.pixels)} of the {len(key.images)} images in the key"
        else:
            self.pixels, baseline = read_pixels(
                settings.images, key.preprocessing, n_images or N_IMAGES, (key.seed + 2) % 2**63
            )
            self._described = baseline.description
        self._all_own = own and len(self.pixels) == len(key.images) and preprocess is None
        self._embedded = {} if clean_encoder is None else self._embedded_by(clean_encoder)

    def ask_all(self) -> None:
        """Ask all pairs from now on, however soon they tell."""
        self._stop_at = None

    @contextmanager
    def opened(self, loaded: LoadedModel, layer: str) -> Iterator[Encoder]:
        """Open a model on the device, in float32, for input of the key's size."""
        module = runnable_on(loaded.module, self._device)
        preprocessing = self.key.preprocessing
        if self._preprocess is not None:
            preprocessing = resolve_preprocessing(self._preprocess, module, loaded.preprocessing)
        if preprocessing.size != self.key.preprocessing.size:
            raise OwnershipError(
                f"preprocess: the model's input is {preprocessing.size}, and the key's "
                f"perturbations are {self.key.preprocessing.size}; give the model an input of "
                "that size"
            )
        with (
            opened(module, preprocessing, self._device, layer) as encoder,
            computing_in("float32", self._device),
        ):
            yield encoder

    def _embedded_by(self, clean_encoder: nn.Module | str) -> dict[int, Tensor]:
        """Return the clean encoder's embeddings of all queries by pair, [2, n, units]."""
        try:
            clean = runnable_on(as_loaded(clean_encoder).module, self._device)
            with (
                opened(clean, self.key.preprocessing, self._device) as encoder,
                computing_in("float32", self._device),
            ):
                encoder.check_made_for(self.key)
                return {
                    pair: in_order(encoder.all, self.key, self.pixels, pair).cpu()
                    for pair in self._pairs
                }
        except WatermarkGuardError as error:
            raise OwnershipError(f"clean_encoder: {error}") from error

    def report(self, response: Response, wanted: Tensor | None, model: str) -> OwnershipReport:
        """Report how a model responds to the pairs, one after the other.

        `wanted` is its answer to the key image, or None if what it gives is nearness to it already.
        """
        key = self.key
        answers = PairAnswers()
        near: list[Tensor] = []
        for pair in self._pairs:
            both = in_order(response, key, self.pixels, pair)
            if wanted is not None and both.shape[2:] != wanted.shape[1:]:
                raise OwnershipError(
                    f"{model} answers now with shape {[*both.shape[1:]]}, and first with "
                    f"{[*wanted.shape]}: it must return labels, or as many scores, for all images"
                )
            nearness = both if wanted is None else _nearness(both, wanted)
            chosen = int(key.coins[pair])
            near.append(nearness.double().mean(dim=1)[[chosen, 1 - chosen]])
            if wanted is not None:
                answers.add(both, chosen, self._embedded.get(pair))
            if (
                self._stop_at is not None
                and _evidence(near, answers.so_far(), wanted)[-1] >= 1 / self._stop_at
            ):
                break
        # Whoever decides how many pairs to ask could stop where it suits him.
        may_stop = self._stop_at is not None or len(self._pairs) < key.pairs
        if wanted is None:
            agreement = None
            lead = less_expected(_lead(near), key.expected_leads(self._pairs))
            evidence = sign_flip_e_values(lead)
        else:
            changes = answers.so_far()
            evidence = _evidence(near, changes, wanted)
            changes = changes if may_stop else answers.whole()
            agreement, lead = changes.agreement(), _lead(near, changes, wanted)
        if may_stop:
            p_value = min(1.0, float(1 / evidence.max()))
        elif agreement is None:
            p_value = sign_flip_p_value(lead)
        else:
            # Of a committed key nobody knew its hash before the draw.
            p_value = agreement_p_value(agreement, lead, int(self._hash[:16], 16))
        with_chosen, with_decoy = torch.stack(near).mean(dim=0).tolist()
        return OwnershipReport(
            model=model,
            access="embeddings" if wanted is None else "labels" if wanted.ndim == 1 else "scores",
            key=self._hash,
            p_value=p_value,
            effect=float(np.mean(lead)),
            differences=tuple(lead.tolist()),
            chosen=with_chosen,
            decoy=with_decoy,
            n_images=len(self.pixels),
            images=self._described,
            queries=len(self.pixels) * 2 * len(lead) + 1,
            version=__version__,
            agreement=() if agreement is None else tuple(map(tuple, agreement.tolist())),
            e_value=float(evidence[-1]),
            stop_at=self._stop_at,
            first_pair=self._pairs[0],
            key_pairs=key.pairs,
            coin_draw=key.coin_draw and replace(key.coin_draw, nonce=""),
            commitment=key.commitment if key.coin_draw is not None else "",
            as_committed=self._all_own and key.coin_draw is not None,
            adjusted=len(key.clean_leads if wanted is None else self._embedded) > 0,
        )


def _chosen_pairs(pairs: range | None, key: OwnershipKey) -> range:
    """Return the pairs to ask; `SettingsError` for others than the key has."""
    there = range(key.pairs)
    if pairs is None:
        return there
    if not isinstance(pairs, range) or not len(pairs) or pairs.step != 1:
        raise SettingsError(f"pairs must be a range such as range(0, 16), not {pairs!r}")
    if pairs[0] not in there or pairs[-1] not in there:
        raise SettingsError(f"pairs: the key has range(0, {key.pairs}), not {pairs!r}")
    return pairs


def _nearness(answers: Tensor, wanted: Tensor) -> Tensor:
    """Return how near labels [2, n] or scores [2, n, classes] are to the key image's."""
    return answers == wanted if wanted.ndim == 1 else similarity(answers, wanted[0])


def _lead(
    near: list[Tensor], changes: AnswerChanges | None = None, wanted: Tensor | None = None
) -> npt.NDArray[np.float64]:
    """Return how much nearer to the key image the chosen one of each pair moves images: [pairs].

    Of labels, less what the clean encoder predicts.
    """
    if changes is not None and wanted is not None and wanted.ndim == 1:
        return changes.of_label(int(wanted[0]))
    with_chosen, with_decoy = np.asarray(torch.stack(near)).T
    return np.asarray(with_chosen - with_decoy)


def _evidence(
    near: list[Tensor], changes: AnswerChanges, wanted: Tensor | None
) -> npt.NDArray[np.float64]:
    """Return the e-values after each pair: [pairs]."""
    return sign_flip_e_values(agreement_gains(changes.agreement(), _lead(near, changes, wanted)))
