"""How much to mask: accuracy against sensitivity, for every share of the features at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pytest_watermark_guard.errors import ImagesError, MaskError
from pytest_watermark_guard.images.classes import known_labels, open_labelled
from pytest_watermark_guard.mitigation.erasure import FeatureErasure
from pytest_watermark_guard.mitigation.mask import number_masked
from pytest_watermark_guard.mitigation.sweep_report import SweepReport
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.models.linear_probe import HeadTrainer, LinearHead
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.recorded import RecordedActivations, recorded
from pytest_watermark_guard.reports.scores import Scores
from pytest_watermark_guard.statistics.auroc import auroc, paired_auroc
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, resolve_scenarios
from pytest_watermark_guard.watermarks.streams import UNMARKED, control_of

ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5)
"""Shares of the features that are masked (Bykov et al., 2023, section 4)."""

_LAYER = "features"
_Z = 1.959963984540054  # of a 95 % interval


def sweep(
    backbone: nn.Module | str,
    train: Any,
    validation: Any,
    alphas: Sequence[float] = ALPHAS,
    scenarios: str | Sequence[str | AnyScenario] = ("chinese",),
    against: Sequence[str | AnyScenario] | None = None,
    threshold: float | None = None,
    *,
    train_labels: Sequence[int] | Mapping[str, int] | None = None,
    validation_labels: Sequence[int] | Mapping[str, int] | None = None,
    preprocess: Any = "auto",
    seed: int | None = None,
    name: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> SweepReport:
    """Train a linear head for every share of masked features, and see what it costs and brings.

    Features are extracted once: of the training images without marks and with those that the units
    are ranked by; of the validation images without marks, with marks of all scenarios that no
    training image had, and with their scrambled controls. The heads are multinomial logistic
    regressions; one more is trained after erasure, if ``concept-erasure`` is installed.

    Parameters
    ----------
    backbone : Module or str
        A model or model spec; its head does not matter.
    train, validation : folder, Dataset, or whatever `probe` takes
        A folder has a subfolder for each class. A Dataset gives (image, label).
    alphas : sequence of float
        In [0, 1]; 0, to compare with, is always among them. Default `ALPHAS`.
    scenarios : str or sequence, default ("chinese",)
        Marks by which the units are ranked, and which are erased.
    against : sequence, optional
        Marks that the heads are scored with; default those of the settings, all four scenarios.
    threshold : float, optional
        The gate's on d; default that of the settings, 0.95.
    train_labels, validation_labels : optional
        As ``labels`` of `probe`, where the images do not tell.
    preprocess, seed, name, progress, **settings
        As for `probe`.

    Returns
    -------
    SweepReport

    Raises
    ------
    ImagesError
        If an image has no label, or a class of the validation images is not trained.
    MaskError
        If an alpha is outside [0, 1].
    WatermarkGuardError
        As `probe`.

    Notes
    -----
    Bykov et al. (2023), section 4, with held-out marks, intervals, and other scenarios.
    """
    run = current_run()
    chosen = run.settings.override(threshold=threshold, seed=seed, scenarios=against)
    shares = _checked(alphas)
    ranked = resolve_scenarios(
        scenarios if isinstance(scenarios, list | tuple) else (scenarios,), run.scenarios
    )
    masked = tuple(scenario.name for scenario in ranked)
    scored = {s.name: s for s in (*ranked, *resolve_scenarios(chosen.scenarios, run.scenarios))}
    train_set, classes = open_labelled("train", train, train_labels, None)
    validation_set, _ = open_labelled("validation", validation, validation_labels, classes)
    common = {"preprocess": preprocess, "name": name, "progress": progress, **settings}
    with recorded(
        backbone, train_set, ranked, (_LAYER,), seed=chosen.seed, control=False, **common
    ) as activations:
        features = _copied(activations, (UNMARKED, *masked))
        labels = known_labels(activations.recording.labels, activations.identities, "train")
        model, weights, notes = activations.model, activations.recording.weights, activations.notes
    with recorded(
        backbone,
        validation_set,
        tuple(scored.values()),
        (_LAYER,),
        seed=chosen.seed + 1,  # strings that no training image had
        control=True,
        **common,
    ) as activations:
        streams = activations.recording.streams
        labels_of = known_labels(activations.recording.labels, activations.identities, "validation")
        held_out = _HeldOut(_copied(activations, streams), labels_of, tuple(scored))
    unknown = sorted(set(held_out.labels.tolist()) - set(labels.tolist()))
    if unknown:
        raise ImagesError(f"validation: class {unknown[0]} has no training image")

    areas = np.array([auroc(features[UNMARKED], features[name]) for name in masked])
    d = np.maximum(areas, 1 - areas).max(axis=0)
    order = np.argsort(-d, kind="stable")
    names = tuple(classes or map(str, range(int(labels.max()) + 1)))
    trainer = HeadTrainer(features[UNMARKED], labels, len(names), chosen.seed)
    counts = [number_masked(alpha, len(d)) for alpha in shares]
    plain: npt.NDArray[np.bool_] | None = None
    heads: list[SweptHead] = []
    for alpha, count, head in zip(
        shares, counts, trainer.nested(order.tolist(), counts), strict=True
    ):
        # The masked units have weights of 0, so the features need not be masked.
        swept, right = held_out.judge(head, names, alpha, count, plain)
        plain = right if plain is None else plain
        heads.append(swept)
    erasure = erased = None
    try:
        erasure = FeatureErasure.from_features(
            features[UNMARKED],
            {name: features[name] for name in masked},
            weights=weights,
            source=f"{model}, with {train_set.description}",
        )
    except MaskError as error:
        notes = (*notes, f"erasure was not tried: {error}")
    else:
        head = trainer.on(_erased(erasure, features[UNMARKED]))
        after = held_out.after(erasure)
        erased, _ = after.judge(head, names, None, 0, plain)
    return SweepReport(
        model=model,
        scenarios=masked,
        threshold=chosen.threshold,
        seed=chosen.seed,
        n_train=len(labels),
        n_validation=len(held_out.labels),
        classes=names,
        penalty=trainer.penalty,
        ranking=tuple(map(int, order)),
        weights=weights,
        heads=tuple(heads),
        erased=erased,
        erasure=erasure,
        notes=notes,
    )


@dataclass(frozen=True)
class _HeldOut:
    """Validation images' features under all marks and their controls."""

    features: Mapping[str, Array]
    labels: npt.NDArray[np.int64]
    scenarios: tuple[str, ...]

    def after(self, erasure: FeatureErasure) -> _HeldOut:
        features = {stream: _erased(erasure, rows) for stream, rows in self.features.items()}
        return _HeldOut(features, self.labels, self.scenarios)

    def judge(
        self,
        head: LinearHead,
        names: tuple[str, ...],
        alpha: float | None,
        masked: int,
        plain: npt.NDArray[np.bool_] | None,
    ) -> tuple[SweptHead, npt.NDArray[np.bool_]]:
        """Score a head; `plain` says which images the head without a mask gets right."""
        logits = {stream: head(rows) for stream, rows in self.features.items()}
        predicted = {stream: rows.argmax(axis=1) for stream, rows in logits.items()}
        right = predicted[UNMARKED] == self.labels
        low, high = _wilson(int(right.sum()), len(right))
        change = right.astype(float) - (right if plain is None else plain)
        error = _Z * float(change.std(ddof=1)) / math.sqrt(len(right)) if len(right) > 1 else 1.0
        mean = float(change.mean())
        scores = {}
        for name in self.scenarios:
            paired = paired_auroc(logits[UNMARKED], logits[name])
            scores[name] = Scores(
                "logits", name, paired.auroc, paired.standard_error, len(right), names
            )

        def flips(stream: str) -> float | None:
            if stream not in predicted:
                return None  # scenarios of copies that are marked already have no control
            return float((predicted[UNMARKED] != predicted[stream]).mean())

        swept = SweptHead(
            alpha=alpha,
            masked=masked,
            accuracy=float(right.mean()),
            accuracy_interval=(low, high),
            change=mean,
            change_interval=(mean - error, mean + error),
            scores=scores,
            flips={name: flips(name) for name in self.scenarios},
            control_flips={name: flips(control_of(name)) for name in self.scenarios},
        )
        return swept, right


def _checked(alphas: Sequence[float]) -> list[float]:
    shares = sorted({0.0, *map(float, alphas)})
    if not 0 <= shares[0] <= shares[-1] <= 1:
        wrong = shares[0] if shares[0] < 0 else shares[-1]
        raise MaskError(f"alphas: shares of the features in [0, 1], got {wrong:g}")
    return shares


def _copied(activations: RecordedActivations, streams: Sequence[str]) -> dict[str, Array]:
    """Copy the features of these streams, which end with the recording."""
    return {
        stream: np.array(activations.recording[stream, _LAYER].columns(), dtype=np.float32)
        for stream in streams
    }


def _erased(erasure: FeatureErasure, features: Array) -> Array:
    rows = torch.from_numpy(np.ascontiguousarray(features))
    erased: Array = erasure.transform(rows, erasure.tensors()).numpy()
    return erased


def _wilson(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    share, square = successes / n, _Z**2 / n
    centre = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return centre - half, centre + half
