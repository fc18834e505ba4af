"""What is recommended, of heads whose true accuracy and d are known."""

from __future__ import annotations

import numpy as np
import pytest

import pytest_watermark_guard as wm
from pytest_watermark_guard.mitigation.choice import Choice
from pytest_watermark_guard.mitigation.swept_head import SweptHead
from pytest_watermark_guard.statistics.proportions import paired_difference_interval


def head(alpha, n=1000, gains=0, losses=0, areas=(0.6, 0.5), error=0.01):
    """A head that gets some images right that the one without a mask does not, and others not."""
    differences = np.zeros(n)
    differences[:gains], differences[gains : gains + losses] = 1, -1
    areas = np.array(areas, dtype=float)
    names = tuple(map(str, range(len(areas))))
    return SweptHead(
        alpha=alpha,
        masked=0,
        accuracy=0.9,
        accuracy_interval=(0.88, 0.92),
        change=float(differences.mean()),
        change_interval=(0.0, 0.0) if alpha == 0 else paired_difference_interval(differences, 0.95),
        scores={"ink": wm.Scores("logits", "ink", areas, np.full(len(areas), error), n, names)},
        flips={"ink": 0.1},
        control_flips={"ink": None},
    )


def choice(choosing, heads=None, threshold=0.8, margin=0.01):
    return Choice(choosing, choosing if heads is None else heads, threshold, margin)


SENSITIVE = {"areas": (0.9, 0.5)}


def test_the_smallest_share_that_holds():
    found = choice([head(0, **SENSITIVE), head(0.1), head(0.2)])
    assert found.recommended.alpha == 0.1
    assert found.advice().startswith("Mask 0.1 of the features")
    assert "lose no more than 1 point of accuracy" in found.advice()
    assert choice([head(0), head(0.1)]).recommended.alpha == 0
    assert choice([head(0), head(0.1)]).advice().startswith("No mask is needed")


def test_an_interval_that_reaches_the_threshold_is_not_under_it():
    """The point is under the threshold, and 95 % of the error is not."""
    near = {"areas": (0.79, 0.5), "error": 0.01}
    assert 0.79 < 0.8 < head(0, **near).d_interval[1]
    found = choice([head(0, **near)])
    assert found.recommended is None
    assert "none brings every d under 0.8" in found.advice()
    # An output with a smaller d and a wider interval counts, too; and one that is silenced.
    wide = wm.Scores("logits", "ink", np.array([0.7, 0.3]), np.array([0.01, 0.1]), 1000, ("a", "b"))
    both = SweptHead(**{**vars(head(0)), "scores": {"ink": wide}})
    assert both.largest_d == 0.7
    assert both.d_interval[1] == pytest.approx(1 - wide.interval()[0][1])
    assert both.d_interval[0] == pytest.approx(wide.interval()[0][0])


def test_the_half_that_chose_is_not_believed_by_itself():
    lucky = [head(0, **SENSITIVE), head(0.1, gains=10), head(0.2)]
    found = choice(lucky, [head(0, **SENSITIVE), head(0.1, losses=20), head(0.2)])
    assert found.chosen.alpha == 0.1
    assert found.recommended is None  # not 0.2 either: that would be a second try
    assert "A share of 0.1 was chosen on 1,000 images, and the 1,000 others do not" in (
        found.advice()
    )
    assert "accuracy changes by -2.0 points" in found.advice()
    assert "More images would not change that" in found.advice()


def test_nothing_that_keeps_the_accuracy():
    found = choice([head(0, **SENSITIVE), head(0.1, losses=40), head(0.2, losses=30)])
    assert found.chosen is None
    assert "loses more than 1 point of accuracy. With a share of 0.2" in found.advice()


@pytest.mark.parametrize("kind", ["accuracy", "d"])
def test_as_many_images_as_it_says_would_do(kind):
    """With the same shares and areas; and six tenths of them would not."""

    def found(n):
        wins, error = (round(0.01 * n), 0.001) if kind == "accuracy" else (0, 0.5 / n**0.5)
        masked = head(0.1, n, wins, wins, (0.79, 0.5), error)
        return choice([head(0, n, **SENSITIVE), head(0.1, n)], [head(0, n, **SENSITIVE), masked])

    few = found(400)
    assert few.recommended is None
    words = few.advice().split("About ")[1]
    needed = int(words.split(" ")[0].replace(",", ""))
    assert 1000 < needed < 100_000
    assert found(round(0.55 * needed)).recommended is not None
    assert found(round(0.3 * needed)).recommended is None


def test_a_share_that_costs_the_margin_is_seldom_recommended():
    """Eight shares that each lose exactly one point: one in forty is what the interval allows."""
    rng = np.random.default_rng(0)
    n, runs = 2000, 200

    def drawn(alpha):
        wins, losses, _ = rng.multinomial(n, [0.01, 0.02, 0.97])
        return head(alpha, n, wins, losses)

    wrong = naive = 0
    for _ in range(runs):
        halves = [[head(0, n, **SENSITIVE), *map(drawn, np.arange(1, 9) / 10)] for _ in range(2)]
        wrong += choice(*halves).recommended is not None
        naive += any(h.change_interval[0] >= -0.01 for h in halves[0][1:])
    assert wrong / runs <= 0.06
    assert naive / runs > 0.1  # what the half that chose says by itself


def test_one_that_costs_nothing_is_recommended():
    rng = np.random.default_rng(1)
    runs, found = 60, 0
    for _ in range(runs):
        wins, losses, _ = rng.multinomial(3000, [0.01, 0.01, 0.98])
        heads = [head(0, 3000, **SENSITIVE), head(0.1, 3000, wins, losses)]
        found += choice(heads).recommended is not None
    assert found / runs > 0.9
