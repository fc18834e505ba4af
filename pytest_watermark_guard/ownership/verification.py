"""Trying a key on a model: on its embeddings, or on nothing but the labels that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError, OwnershipError
from pytest_watermark_guard.models.loading.loading import as_loaded
from pytest_watermark_guard.ownership.encoder import CHUNK
from pytest_watermark_guard.ownership.key import OwnershipKey
from pytest_watermark_guard.ownership.trial import Trial
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.reports.ownership import Null, OwnershipReport
from pytest_watermark_guard.statistics.levels import check_level

_LARGEST_SCORE = 1e100  # products of larger ones are infinite

Predictor: TypeAlias = Callable[[Tensor], Any]
"""From pixels, uint8 [B, 3, H, W], to B class indices, or to scores [B, classes]."""


def verify(
    model: nn.Module | str,
    key: OwnershipKey,
    images: Any = None,
    nulls: Mapping[str, nn.Module | str | OwnershipKey] | None = None,
    *,
    n_images: int | None = None,
    pairs: range | None = None,
    preprocess: Any = None,
    name: str | None = None,
    device: str | torch.device | None = None,
) -> OwnershipReport:
    """Try a key on a model's embeddings (white box).

    Parameters
    ----------
    model : Module or str
        An encoder, or a classifier that was built on one; what a probe calls its features is used.
    key : OwnershipKey
    images : optional
        Other images than the key's own, as for `probe`. Images that were picked after the model was
        seen can decide the result: what they show is no evidence.
    nulls : mapping of str to Module, str or OwnershipKey, optional
        What must find nothing, by name: models that were made without the key (the clean encoder,
        others that were trained independently), and wrong keys, which are tried on the model. They
        are put to the same test, and stand in the report. Who verifies somebody else's claim
        chooses them, and not who makes it.
    n_images : int, optional
        The first of the key's images; or a random choice of `images`, by default 16.
    pairs : range, optional
        Those of the key's pairs that are asked, by default all; whoever sees the queries knows
        them, so that others are kept for another time. The p-value of a part is 1 / its largest
        e-value, which holds for whoever decides later to stop there.
    preprocess : optional
        As for `probe`; default the key's.
    name : str, optional
        What the report calls the model.
    device : optional
        As for `probe`.

    Returns
    -------
    OwnershipReport

    Raises
    ------
    OwnershipError
        If the model's input has not the size that the key was made for, or the key's coins are not
        drawn yet.
    SettingsError
        If `n_images` or `pairs` is not among what there is.
    WatermarkGuardError
        As `probe`.

    Notes
    -----
    The encoder responds to the perturbations already before they are embedded, as they were learned
    on it; so do its relatives. What is tested is therefore not the response, but whether it is
    larger for those that the coins chose. Given the model, the coins are fair and independent if it
    was made without them: the p-value is exact, whatever the model, the images and the
    perturbations are. That the coins are fair has to be believed of a key with coins of its own; of
    a committed key it follows from the beacon (see `OwnershipKey.commit`). What the clean encoder
    did was fixed before the coins, and is subtracted (covariance adjustment of a randomisation
    test; Rosenbaum, 2002): see `pytest_watermark_guard.statistics.sign_flips.less_expected`.
    """

    def measured(candidate: nn.Module | str, trial: Trial, called: str | None) -> OwnershipReport:
        loaded = as_loaded(candidate)
        with trial.opened(loaded, "features") as encoder:
            near = encoder.nearness(trial.key.key_image)
            return trial.report(near, None, called or loaded.name)

    make_trial = partial(
        Trial, images=images, n_images=n_images, pairs=pairs, preprocess=preprocess, device=device
    )
    return _with_nulls(measured, make_trial, model, key, name, nulls)


def verify_classifier(
    classifier: nn.Module | str | Predictor,
    key: OwnershipKey,
    images: Any = None,
    nulls: Mapping[str, nn.Module | str | Predictor | OwnershipKey] | None = None,
    *,
    n_images: int | None = None,
    pairs: range | None = None,
    stop_at: float | None = None,
    clean_encoder: nn.Module | str | None = None,
    preprocess: Any = None,
    name: str | None = None,
    device: str | torch.device | None = None,
) -> OwnershipReport:
    """Try a key on the predictions of a classifier (black box).

    Parameters
    ----------
    classifier : Module, str or callable
        A model or model spec, of which the largest logit counts; or a function that asks someone
        else's: from pixels (uint8 Tensor [B, 3, H, W], RGB, at the key's size) to B class indices,
        or to a score for each class, floating point [B, classes].
    key, images, nulls, n_images, pairs, preprocess, name, device
        As for `verify`. It takes ``n_images × 2 × pairs + 1`` queries. They are asked in an
        order that does not depend on the coins, so that the log of them does not tell which they
        are.
    stop_at : float, optional
        Ask pair by pair, and stop as soon as the p-value is this small. It is then the one that
        holds whenever one stops, 1 / the e-value. `OwnershipReport.queries_needed` of a rehearsal
        on a classifier of one's own tells what to expect.
    clean_encoder : Module or str, optional
        The encoder that the key was made for, and wrong keys among the nulls too. It is run on the
        same queries before they are asked, and what its embeddings predict is subtracted: a pair
        changes answers without any mark, too, and that can hide a weak one.

    Returns
    -------
    OwnershipReport

    Raises
    ------
    OwnershipError
        If the function returns neither labels nor scores for each image, the model has no logits,
        the size does not fit, the key's coins are not drawn yet, or it was not made for
        `clean_encoder`.
    SettingsError
        If `n_images`, `pairs` or `stop_at` is not among what there is.
    WatermarkGuardError
        As `probe`.

    Notes
    -----
    As `verify`, with another statistic. What is embedded moves images the same way in all pairs,
    wherever that leads in this classifier: so each two pairs are compared by how they change the
    counts of labels (chosen against decoy), and no label in particular is needed. Added to it is
    the share of images that get the key image's label. Of scores the same: the changes of their
    means, and the cosine to the key image's. See
    `pytest_watermark_guard.statistics.sign_flips.agreement_p_value`: the test is exact for this
    sum, as for any; and `pytest_watermark_guard.ownership.answers.PairAnswers` for what the clean
    encoder predicts: by the answers to all other pairs, for e-values by those to the pairs before.
    """
    if stop_at is not None:
        check_level("stop_at", stop_at)
    if clean_encoder is not None:
        _check_made_alike(key, nulls or {})

    def measured(
        candidate: nn.Module | str | Predictor, trial: Trial, called: str | None
    ) -> OwnershipReport:
        image = trial.key.key_image
        if not isinstance(candidate, str | nn.Module):
            if not callable(candidate):
                raise OwnershipError(
                    "the classifier must be a model, a model spec, or a function from pixels to "
                    f"labels or scores, not {type(candidate).__name__}"
                )
            own: str = getattr(candidate, "__name__", type(candidate).__name__)
            wanted = _predicted(candidate, image[None])
            return trial.report(partial(_predicted, candidate), wanted, called or own)
        loaded = as_loaded(candidate)
        try:
            with trial.opened(loaded, "logits") as model:
                ask = partial(_predicted, lambda pixels: model.all(pixels).argmax(1))
                return trial.report(ask, ask(image[None]), called or loaded.name)
        except LayerError as error:
            raise OwnershipError(
                f"{loaded.name} returns no logits: use verify for an encoder without a head, or "
                "pass a function from pixels to labels"
            ) from error

    make_trial = partial(
        Trial, images=images, n_images=n_images, pairs=pairs, preprocess=preprocess, device=device,
        stop_at=stop_at, clean_encoder=clean_encoder,
    )  # fmt: skip
    return _with_nulls(measured, make_trial, classifier, key, name, nulls)


_Candidate = TypeVar("_Candidate")


def _with_nulls(
    measured: Callable[[_Candidate, Trial, str | None], OwnershipReport],
    make_trial: Callable[[OwnershipKey], Trial],
    model: _Candidate,
    key: OwnershipKey,
    name: str | None,
    nulls: Mapping[str, _Candidate | OwnershipKey] | None,
) -> OwnershipReport:
    """Put a model and its nulls to the same test, and hand the report to the run."""
    trial = make_trial(key)
    report = measured(model, trial, name)
    # A null that stops early could stop short of what it would show.
    trial.ask_all()
    controls = []
    for called, null in (nulls or {}).items():
        if isinstance(null, OwnershipKey):
            other = make_trial(null)
            other.ask_all()
            controls.append(measured(model, other, called))
        else:
            controls.append(measured(null, trial, called))
    report = replace(
        report, nulls=tuple(Null(null.model, null.p_value, null.effect) for null in controls)
    )
    current_run().on_ownership(report)
    return report


def _check_made_alike(key: OwnershipKey, nulls: Mapping[str, Any]) -> None:
    """Raise before anything is asked where a wrong key is for another encoder than the key."""
    for called, null in nulls.items():
        if isinstance(null, OwnershipKey) and null.encoder != key.encoder:
            raise OwnershipError(
                f"nulls: {called!r}: clean_encoder: the key was made for weights "
                f"{null.encoder[:12]}..., and not for {key.encoder[:12]}...: make a wrong key for "
                "the encoder, or verify without clean_encoder"
            )


def _predicted(predict: Predictor, pixels: Tensor) -> Tensor:
    """Return labels, int64 [n], or scores, float64 [n, classes]."""
    parts = []
    for part in torch.split(pixels, CHUNK):
        answer = predict(part)
        if isinstance(answer, Tensor):
            answer = answer.detach().cpu()
            answer = answer.float() if answer.dtype is torch.bfloat16 else answer
        try:
            values = np.asarray(answer)
        except ValueError as error:  # rows of different lengths
            raise OwnershipError(f"the classifier's answers are no array: {error}") from error
        labels = values.ndim == 1 and values.dtype.kind in "iu"
        scores = values.ndim == 2 and values.dtype.kind == "f" and values.shape[1] > 0
        if not (labels or scores) or len(values) != len(part):
            raise OwnershipError(
                f"the classifier must return {len(part)} class indices, or scores of shape "
                f"[{len(part)}, classes], for {len(part)} images, and returned {values.dtype} of "
                f"shape {[*values.shape]}"
            )
        if not (np.abs(values.astype(np.float64)) <= _LARGEST_SCORE).all():
            raise OwnershipError("the classifier returned scores that are NaN or infinite")
        parts.append(torch.from_numpy(values.astype(np.int64 if labels else np.float64)))
    return torch.cat(parts)
