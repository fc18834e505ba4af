"""Does the largest d of many units truly reach a threshold? Told from A and its error alone."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from pytest_watermark_guard.statistics.auroc import Floats
from pytest_watermark_guard.statistics.intervals import known_error
from pytest_watermark_guard.statistics.quantiles import sidak, student_quantile

Answer: TypeAlias = Literal["reaches", "below", "unclear"]

_SELECTION = 0.1  # share of the error that the choice of units takes
_MOST_IMAGES = 10**9


class ThresholdDecision(NamedTuple):
    """Whether the largest d reaches a threshold, and how many images would tell.

    Attributes
    ----------
    answer : str
        ``"reaches"``, ``"below"`` or ``"unclear"``.
    images_needed : int or None
        Where it is unclear: the images, or groups, that would tell if every A stayed as it is. The
        largest of many falls as images come, so more may be needed. None if no number would, or a
        single image gave no error.
    """

    answer: Answer
    images_needed: int | None = None


def decide(
    auroc: Floats, standard_error: Floats, n_images: int, threshold: float, level: float = 0.95
) -> ThresholdDecision:
    """Say whether the true largest d = max(A, 1 − A) of some units reaches a threshold.

    Parameters
    ----------
    auroc, standard_error : ndarray, shape [units]
        As `paired_auroc` gives them.
    n_images : int
        Number of images; of groups, where the error is that of groups.
    threshold : float
        In (0.5, 1]. No images show that 1 is reached.
    level : float, default 0.95
        1 − level is the chance of a wrong ``"reaches"``, and of a wrong ``"below"``.

    Returns
    -------
    ThresholdDecision

    Raises
    ------
    ValueError
        If `threshold` or `level` is out of range, or there is no unit.

    Notes
    -----
    **Claim.** It is about all images of which these are a random sample. A verdict of
    `SequentialGate` is about the images at hand: "clean" after 24 of 998 has proved that d of the
    998 is below the threshold, where this test, shown the 24 alone, may find it unclear.

    **Distance.** Â stands for the share of wins in Â(1 − Â)/error² independent trials, floor(n/2)
    at least, since n images make as many disjoint pairs. Its distance to the threshold is the
    signed root of the binomial deviance: the error is that under the threshold, and the scale is
    right near 1. It is held against Student's t of n − 1 degrees of freedom.

    **"below"** is an intersection-union test: each unit must by itself refute d >= threshold, at
    the full level whatever their number. A few images refute little, since t is large.

    **"reaches"** is a union-intersection test. Units so far below the threshold that chance does
    not bring them there (a simultaneous bound, at a tenth of the error) do not count; the nearest
    unit must refute d < threshold at Šidák's level for those that do. Half a lost trial more
    corrects for the trials being whole. And n images are all on the right side of each other with
    chance threshold^n: above the level they cannot tell, however well they are separated. That
    bound holds where an image with a high score has, if anything, a high score with the mark
    as well. Were it the contrary, in pairs of images that both lose, it would be threshold^(n/2).

    References
    ----------
    Berger (1982), for intersection-union tests; Romano, Shaikh & Wolf, "A practical two-step method
    for testing moment inequalities" (2014), for leaving units out.

    Examples
    --------
    >>> area, error = np.array([0.99, 0.6]), np.array([0.005, 0.04])
    >>> decide(area, error, 100, threshold=0.95)
    ThresholdDecision(answer='reaches', images_needed=None)
    >>> decide(area, error, 30, threshold=0.95)
    ThresholdDecision(answer='unclear', images_needed=61)
    """
    if not 0.5 < threshold <= 1:
        raise ValueError(f"threshold must be above 0.5 and at most 1, got {threshold!r}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level!r}")
    if not len(auroc):
        raise ValueError("auroc: expected at least one unit, got none")
    if n_images < 2 or np.isnan(standard_error).any():
        return ThresholdDecision("unclear")

    def answer_of(images: int) -> Answer:
        error = standard_error * np.sqrt(n_images / images)
        return _answer(auroc, error, images, threshold, 1 - level)

    answer = answer_of(n_images)
    if answer != "unclear":
        return ThresholdDecision(answer)
    few, enough = n_images, 2 * n_images
    while answer_of(enough) == "unclear":
        few, enough = enough, 2 * enough
        if enough > _MOST_IMAGES:
            return ThresholdDecision("unclear")
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if answer_of(middle) == "unclear" else (few, middle)
    return ThresholdDecision("unclear", enough)


def _answer(
    auroc: Floats, standard_error: Floats, n_images: int, threshold: float, tail: float
) -> Answer:
    freedom = n_images - 1
    d = np.maximum(auroc, 1 - auroc)
    trials = np.maximum(d * (1 - d) / known_error(standard_error, n_images) ** 2, n_images // 2)
    trials = np.where(d == 1, n_images, trials)  # the error tells nothing
    distance = _distance(d, trials, threshold)
    if distance.max() <= -student_quantile(tail, freedom):
        return "below"
    far = student_quantile(sidak(_SELECTION * tail, len(d)), freedom)
    counted = max(1, int((distance > -far).sum()))
    each = sidak((1 - _SELECTION) * tail, counted)
    surest = _distance(d - 0.5 / trials, trials, threshold).max()
    if threshold**n_images <= each and surest >= student_quantile(each, freedom):
        return "reaches"
    return "unclear"


def _distance(d: Floats, trials: Floats, threshold: float) -> Floats:
    """Return how many errors each unit's d is above the threshold."""
    lost = 1 - d
    with np.errstate(divide="ignore", invalid="ignore"):
        deviance = d * np.log(d / threshold)
        deviance += np.where(lost == 0, 0.0, lost * np.log(lost / (1 - threshold)))
    # Rounding may make it a little less than 0.
    return np.asarray(np.sign(d - threshold) * np.sqrt(2 * trials * np.maximum(deviance, 0)))
