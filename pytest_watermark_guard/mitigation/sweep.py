"""How much to mask: accuracy against sensitivity, for every share of the features at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from pytest_watermark_guard.errors import ImagesError, MaskError, SettingsError
from pytest_watermark_guard.images.classes import known_labels, open_labelled
from pytest_watermark_guard.mitigation.erasure import FeatureErasure
from pytest_watermark_guard.mitigation.held_out import HeldOut
from pytest_watermark_guard.mitigation.mask import number_masked
from pytest_watermark_guard.mitigation.sweep_report import SweepReport
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.models.linear_probe import HeadTrainer
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.probing.context import current_run
from pytest_watermark_guard.probing.recorded import RecordedActivations, recorded
from pytest_watermark_guard.setting_values import is_number
from pytest_watermark_guard.statistics.auroc import auroc
from pytest_watermark_guard.watermarks.scenarios import AnyScenario, resolve_scenarios
from pytest_watermark_guard.watermarks.streams import STROKES, UNMARKED

ALPHAS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5)
"""Shares of the features that are masked (Bykov et al., 2023, section 4)."""

_LAYER = "features"
_FEWEST = 4  # validation images: two in each half, for an error to be estimated


def sweep(
    backbone: nn.Module | str,
    train: Any,
    validation: Any,
    alphas: Sequence[float] = ALPHAS,
    scenarios: str | Sequence[str | AnyScenario] = ("chinese",),
    against: Sequence[str | AnyScenario] | None = None,
    threshold: float | None = None,
    *,
    margin: float = 0.01,
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
    regressions; one more is trained after erasure, if ``concept-erasure`` is installed. One half of
    the validation images, drawn at random, chooses a share; all figures are of the other half.

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
    margin : float, default 0.01
        Accuracy that may be lost: a share is recommended if the 95 % interval of the change in
        accuracy, and those of all d, show that no more is lost and every d is under the threshold.
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
        If an image has no label, a class of the validation images is not trained, or there are
        fewer than four of them.
    SettingsError
        If the margin is not in [0, 1).
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
    shares, margin = _checked(alphas), _checked_margin(margin)
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
        control=STROKES,
        **common,
    ) as activations:
        streams = activations.recording.streams
        labels_of = known_labels(activations.recording.labels, activations.identities, "validation")
        held_out = HeldOut(_copied(activations, streams), labels_of, tuple(scored))
    unknown = sorted(set(held_out.labels.tolist()) - set(labels.tolist()))
    if unknown:
        raise ImagesError(f"validation: class {unknown[0]} has no training image")
    if len(held_out.labels) < _FEWEST:
        raise ImagesError(
            f"validation: {len(held_out.labels)} images, and one half chooses a share while the "
            f"other tests it; pass at least {_FEWEST}, and some hundreds to be told anything"
        )
    choosing, testing = held_out.halves(chosen.seed)

    areas = np.array([auroc(features[UNMARKED], features[name]) for name in masked])
    d = np.maximum(areas, 1 - areas).max(axis=0)
    order = np.argsort(-d, kind="stable")
    names = tuple(classes or map(str, range(int(labels.max()) + 1)))
    trainer = HeadTrainer(features[UNMARKED], labels, len(names), chosen.seed)
    counts = [number_masked(alpha, len(d)) for alpha in shares]
    trained = list(trainer.nested(order.tolist(), counts))
    # The masked units have weights of 0, so the features need not be masked.
    first, heads = (
        tuple(
            half.judge(head, names, alpha, count, half.right(trained[0]))
            for alpha, count, head in zip(shares, counts, trained, strict=True)
        )
        for half in (choosing, testing)
    )
    erasure: FeatureErasure | None = None
    after: SweptHead | None = None
    try:
        erasure = FeatureErasure.from_features(
            features[UNMARKED],
            {name: features[name] for name in masked},
            held_out=(held_out.features[UNMARKED], {n: held_out.features[n] for n in masked}),
            weights=weights,
            source=f"{model}, with {train_set.description}",
        )
    except MaskError as error:
        notes = (*notes, f"erasure was not tried: {error}")
    else:
        head = trainer.on(erasure.applied_to(features[UNMARKED]))
        after = testing.after(erasure).judge(head, names, None, 0, testing.right(trained[0]))
    return SweepReport(
        model=model,
        scenarios=masked,
        threshold=chosen.threshold,
        margin=margin,
        seed=chosen.seed,
        n_train=len(labels),
        n_validation=len(held_out.labels),
        classes=names,
        penalty=trainer.penalty,
        ranking=tuple(map(int, order)),
        weights=weights,
        choosing=first,
        heads=heads,
        erased=after,
        erasure=erasure,
        notes=notes,
    )


def _checked(alphas: Sequence[float]) -> list[float]:
    try:
        shares = sorted({0.0, *map(float, alphas)})
    except (TypeError, ValueError):
        raise MaskError(f"alphas: shares of the features in [0, 1], got {alphas!r}") from None
    if not 0 <= shares[0] <= shares[-1] <= 1:
        wrong = shares[0] if shares[0] < 0 else shares[-1]
        raise MaskError(f"alphas: shares of the features in [0, 1], got {wrong:g}")
    return shares


def _checked_margin(margin: float) -> float:
    if not is_number(margin) or not 0 <= margin < 1:
        raise SettingsError(
            f"margin must be a number in [0, 1), the share of accuracy that may be lost, got "
            f"{margin!r}"
        )
    return float(margin)


def _copied(activations: RecordedActivations, streams: Sequence[str]) -> dict[str, Array]:
    """Copy the features of these streams, which end with the recording."""
    return {
        stream: np.array(activations.recording[stream, _LAYER].columns(), dtype=np.float32)
        for stream in streams
    }
