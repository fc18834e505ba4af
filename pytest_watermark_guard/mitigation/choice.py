"""Which share of the features to mask: chosen on some images, and tested on others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_watermark_guard.mitigation.swept_head import SweptHead


@dataclass(frozen=True)
class Choice:
    """A choice among heads that were judged on two halves of the validation images.

    On one half the smallest share is chosen that brings every d under the threshold, intervals
    included, and does not lose more than the margin. On the other half that share, and no other, is
    tested: it is recommended if the 95 % intervals of all d are below the threshold, and that of
    the change in accuracy is above minus the margin (a test of non-inferiority). One share is
    tested, once: trying many does not make a wrong recommendation more likely than the 2.5 % of one
    end of an interval. As every d has to be below, neither does the number of outputs.
    """

    choosing: Sequence[SweptHead]  # on the half that chooses
    heads: Sequence[SweptHead]  # the same heads on the other half
    threshold: float
    margin: float

    @property
    def chosen(self) -> SweptHead | None:
        """What was chosen, as the other half shows it."""
        fit = (
            head
            for first, head in zip(self.choosing, self.heads, strict=True)
            if self.passes(first) and first.change >= -self.margin
        )
        return next(fit, None)

    @property
    def recommended(self) -> SweptHead | None:
        """What was chosen, if the other half bears it out."""
        chosen = self.chosen
        return chosen if chosen is not None and self.holds(chosen) else None

    def holds(self, head: SweptHead) -> bool:
        """Tell whether the intervals keep threshold and margin."""
        return self.passes(head) and self.keeps_accuracy(head)

    def passes(self, head: SweptHead) -> bool:
        """Tell whether the intervals of all d are under the threshold."""
        return head.d_interval[1] < self.threshold

    def keeps_accuracy(self, head: SweptHead) -> bool:
        """Tell whether the interval of the change in accuracy keeps the margin."""
        return head.change_interval[0] >= -self.margin

    def advice(self) -> str:
        """Say what is recommended and on what grounds, or why nothing is and what would help."""
        head, tested = self.chosen, self.heads[0].n_images
        if head is None:
            return self._nothing_chosen()
        if not self.holds(head):
            share = "No mask" if head.alpha == 0 else f"A share of {head.alpha:g}"
            return (
                f"No share is recommended. {share} was chosen on {self.choosing[0].n_images:,} "
                f"images, and the {tested:,} others do not bear it out: {self.shortfall(head)}"
            )
        if head.alpha == 0:
            return (
                f"No mask is needed: on the {tested:,} images that chose nothing, {_d(head)}, and "
                f"so under {self.threshold:g}."
            )
        return (
            f"Mask {head.alpha:g} of the features: of the shares that bring every d under "
            f"{self.threshold:g} and lose no more than {_points(self.margin)} of accuracy, the "
            f"smallest, by {self.choosing[0].n_images:,} images. On the {tested:,} others "
            f"{_d(head)}, and {_accuracy(head)}."
        )

    def shortfall(self, head: SweptHead) -> str:
        """Say what a head lacks, and how many validation images might show more."""
        reasons, factors = [], []
        if not self.passes(head):
            reasons.append(f"{_d(head)}, and is to be under {self.threshold:g}")
            factors.append(self._images_for_d(head))
        if not self.keeps_accuracy(head):
            reasons.append(f"{_accuracy(head)}, where a loss of {_points(self.margin)} is allowed")
            reach = head.change - head.change_interval[0]
            factors.append(_images(reach, head.change + self.margin))
        return "; ".join(reasons) + f". {self._remedy(max(factors))}"

    def _images_for_d(self, head: SweptHead) -> float:
        # On the scale on which intervals of d are symmetric.
        found, bound, threshold = map(_logit, (head.largest_d, head.d_interval[1], self.threshold))
        return _images(bound - found, threshold - found)

    def _remedy(self, factor: float) -> str:
        if math.isinf(factor):
            return "More images would not change that, as far as these tell."
        images = factor * (self.heads[0].n_images + self.choosing[0].n_images)
        scale = 10 ** max(0, math.floor(math.log10(images)) - 1)
        return (
            f"About {math.ceil(images / scale) * scale:,} validation images would show more, if "
            "these figures stay as they are."
        )

    def _nothing_chosen(self) -> str:
        under = [head for head in self.choosing if self.passes(head)]
        by = f"by the {self.choosing[0].n_images:,} images that choose"
        if under:
            best = max(under, key=lambda head: head.change)
            return (
                f"No share is recommended: {by}, every share that brings all d under "
                f"{self.threshold:g} loses more than {_points(self.margin)} of accuracy. With a "
                f"share of {best.alpha:g}, {_accuracy(best)}."
            )
        best = min(self.choosing, key=lambda head: head.d_interval[1])
        return (
            f"No share is recommended: {by}, none brings every d under {self.threshold:g}. With a "
            f"share of {best.alpha:g}, {_d(best)}. " + self._remedy(self._images_for_d(best))
        )


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if share < 1 else math.inf


def _images(reach: float, room: float) -> float:
    """Return how many times the images it takes for an interval's half to fit into some room."""
    return (reach / room) ** 2 if room > 0 and reach < math.inf else math.inf


def _d(head: SweptHead) -> str:
    return (
        f"the largest d is {head.largest_d:.3f}, by its interval at most {head.d_interval[1]:.3f}"
    )


def _accuracy(head: SweptHead) -> str:
    return (
        f"accuracy changes by {100 * head.change:+.1f} points, by its interval "
        f"{100 * head.change_interval[0]:+.1f} at worst"
    )


def _points(share: float) -> str:
    points = f"{100 * share:g}"
    return f"{points} point" if points == "1" else f"{points} points"
