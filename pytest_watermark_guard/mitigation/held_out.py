"""Validation images' features, and what heads make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.mitigation.erasure import FeatureErasure
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.models.linear_probe import LinearHead
from pytest_watermark_guard.probing.activation_buffer import Array
from pytest_watermark_guard.reports.conclusion import LEVEL
from pytest_watermark_guard.reports.scores import Scores
from pytest_watermark_guard.statistics.auroc import paired_auroc
from pytest_watermark_guard.statistics.proportions import (
    paired_difference_interval,
    share_interval,
)
from pytest_watermark_guard.watermarks.streams import UNMARKED, control_of


@dataclass(frozen=True)
class HeldOut:
    """Features, by stream, of images that no head was trained on."""

    features: Mapping[str, Array]
    labels: npt.NDArray[np.int64]
    scenarios: tuple[str, ...]

    def halves(self, seed: int) -> tuple[HeldOut, HeldOut]:
        """Split the images at random in two; of an odd number the second gets one more."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        half = len(order) // 2
        return self._of(np.sort(order[:half])), self._of(np.sort(order[half:]))

    def _of(self, images: npt.NDArray[np.intp]) -> HeldOut:
        features = {stream: rows[images] for stream, rows in self.features.items()}
        return HeldOut(features, self.labels[images], self.scenarios)

    def after(self, erasure: FeatureErasure) -> HeldOut:
        """Return the same images after an erasure."""
        features = {stream: erasure.applied_to(rows) for stream, rows in self.features.items()}
        return HeldOut(features, self.labels, self.scenarios)

    def right(self, head: LinearHead) -> npt.NDArray[np.bool_]:
        """Tell which of the unmarked images a head gets right."""
        found: npt.NDArray[np.bool_] = head(self.features[UNMARKED]).argmax(axis=1) == self.labels
        return found

    def judge(
        self,
        head: LinearHead,
        names: tuple[str, ...],
        alpha: float | None,
        masked: int,
        plain: npt.NDArray[np.bool_],
    ) -> SweptHead:
        """Score a head; `plain` says which images the head without a mask gets right."""
        logits = {stream: head(rows) for stream, rows in self.features.items()}
        predicted = {stream: rows.argmax(axis=1) for stream, rows in logits.items()}
        right = predicted[UNMARKED] == self.labels
        differences = right.astype(int) - plain
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

        # The head without a mask is not measured against itself: nothing changes.
        itself = alpha == 0
        return SweptHead(
            alpha=alpha,
            masked=masked,
            accuracy=float(right.mean()),
            accuracy_interval=share_interval(right, LEVEL),
            change=float(differences.mean()),
            change_interval=(
                (0.0, 0.0) if itself else paired_difference_interval(differences, LEVEL)
            ),
            scores=scores,
            flips={name: flips(name) for name in self.scenarios},
            control_flips={name: flips(control_of(name)) for name in self.scenarios},
        )
