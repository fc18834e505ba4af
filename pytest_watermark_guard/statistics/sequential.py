"""The full run's verdict from its first images, at a stated risk: betting against every unit."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pytest_watermark_guard.statistics.auroc import Floats

ScorePair: TypeAlias = tuple[npt.NDArray[Any], npt.NDArray[Any]]
Verdict: TypeAlias = Literal["sensitive", "clean"]

_GROUP = 8  # images that are bet on together
_TAG = 0x5E9  # sets our draws apart from a caller's shuffle by the same seed
# Bets that a unit is clean, as shares of the largest that cannot lose everything: the small ones
# pay near the threshold, the large ones far below it.
_SHARES = np.array([0.05, 0.15, 0.45])
_LARGEST_BET = 100.0  # where threshold = 1 would allow any
# Pseudo-groups at the threshold: the first leader is mostly luck and not worth a large bet.
_DOUBT = 5
_ALL_BUT = 0.999  # of the largest bet, so that one lost pair is not the end


class SequentialGate:
    """Says early whether any unit of a full run will have d = max(A, 1 − A) >= threshold.

    `error` is the chance of a verdict other than that of the full run of `images` images; it is for
    the whole verdict, over all layers, scenarios and units and all moments at which it may fall.
    `seed` is for the gate's own draws. What is out of range is a ValueError.

    Notes
    -----
    **Guarantee.** Let A be as in `auroc.paired_auroc` over all N images. If the images come in
    uniformly random order, independent of `seed`, then the chance that ever a verdict is given
    that differs from max d >= threshold is at most `error`. It holds for every N, any scores with
    any ties and dependence between units, and assumes no population behind the images. A verdict
    may not come before the last image; then only the full run tells.

    **Draws.** The gate bets on draws *with* replacement from the N images: having met k, the next
    draw repeats one of them with chance k/N (at no cost) or else is the next new image. Draws are
    thus independent, and of two of them the mean of h = (φ(mᵢ, bⱼ) + φ(mⱼ, bᵢ))/2, φ = 1 for a
    win, 1/2 for a tie, is exactly A, N same-image pairs among the N² included. (To pair the images
    of a small group with themselves would give those pairs a share of 1/8, not 1/N.)

    **One bet.** If A >= τ, a bet 0 <= λ < 1/(1 − τ) on a perfect matching of 8 draws has
    E ∏(1 + λ(τ − h)) = (1 + λ(τ − A))⁴ <= 1, since its pairs are independent; so has the average
    over the 7 rounds of a round-robin, where every pair meets once (less spread, faster growth).
    Products over successive groups, and averages of these over λ, are nonnegative
    supermartingales: by Ville's inequality they ever reach 1/error with chance at most `error`.

    **"clean"** is an intersection-union test: each unit must have refuted A >= τ and, mirrored,
    A <= 1 − τ. A unit that is sensitive satisfies one of them, and that single test errs with
    chance at most `error`; hence no correction for their number.

    **"sensitive"** refutes that all units have 1 − τ < A < τ by a single process: before each
    group the past alone picks the unit with the highest d and the bet 0 <= λ < 1/τ on factors
    1 + λ(h − τ). For a given truth only one of the two verdicts is an error.

    **Limit.** A pair multiplies that process by at most 1/τ: at τ = 0.95 and error 0.001 a verdict
    "sensitive" takes 270 draws, 237 of 998 images, even for a perfect detector. No rule does much
    better: were 26 of the 998 images reversed, A would be 0.949, yet 229 images would show none
    of them with a chance above 0.001. With τ = 1 only "clean" comes early.

    References
    ----------
    Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (2024),
    for the bets; Berger, "Multiparameter hypothesis testing and acceptance sampling" (1982), for
    intersection-union tests.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> baseline, marked = rng.normal(size=(2, 300, 50))
    >>> gate = SequentialGate(threshold=0.95, error=0.001, images=300)
    >>> gate.update({("logits", "chinese"): (baseline[:40], marked[:40])})
    >>> gate.verdict, gate.n_images
    ('clean', 24)
    """

    def __init__(self, threshold: float, error: float, images: int, seed: int = 0) -> None:
        if not 0.5 < threshold <= 1:
            raise ValueError(f"threshold must be above 0.5 and at most 1, got {threshold!r}")
        if not 0 < error < 1:
            raise ValueError(f"error must be above 0 and below 1, got {error!r}")
        if images < 1:
            raise ValueError(f"images must be at least 1, got {images!r}")
        self._threshold = threshold
        self._enough = 1 / error
        self._images = images
        self._generator = np.random.default_rng((seed, _TAG))
        self._payoffs = _payoffs(threshold)
        self._widths: dict[Hashable, int] | None = None
        self._rows: list[npt.NDArray[Any]] = []  # of every image: both scores, [2, kept units]
        self._pending: list[int] = []  # the next group's draws, as positions in _rows
        self._drawn = 0
        self._n_images = 0
        self._groups = 0
        self._sensitive_wealth = 1.0
        self._verdict: Verdict | None = None

    @property
    def verdict(self) -> Verdict | None:
        """``"sensitive"`` or ``"clean"``, for good; None while undecided."""
        return self._verdict

    @property
    def n_images(self) -> int:
        """Images used so far; with a verdict, the images that it needed."""
        return self._n_images

    @property
    def undecided(self) -> dict[Hashable, int]:
        """Number of units not found clean so far, by (layer, scenario)."""
        if self._widths is None:
            return {}
        counts = np.bincount(self._owner[self._active], minlength=len(self._widths))
        return dict(zip(self._widths, counts.tolist(), strict=True))

    def update(
        self,
        scores: Mapping[Hashable, ScorePair],
        exempt: Mapping[Hashable, npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        """Take the next images' scores; how they are split over calls makes no difference.

        `scores` holds by (layer, scenario) the baseline and the marked scores, [B, units], of the
        same B >= 0 images for every key. Units that are `exempt`, [units], are not tested; it is
        read at the first call. Scores that do not fit, are not finite or are more than `images` are
        a ValueError, and nothing is taken then.
        """
        if self._verdict is not None:
            return
        block, rows = _checked(scores, self._widths)
        if len(self._rows) + rows > self._images:
            raise ValueError(f"expected {self._images} images in all, got {len(self._rows) + rows}")
        if self._widths is None:
            self._start({key: pair[0].shape[1] for key, pair in block.items()}, exempt or {})
        sides = zip(*(block[key] for key in self._widths or ()), strict=True)
        low, high = (np.concatenate(side, axis=1)[:, self._kept] for side in sides)
        self._rows.extend(np.stack([low, high], axis=1))
        while self._verdict is None and self._draw_group():
            self._bet_on_group()
        if self._verdict is not None:
            self._rows.clear()  # and with them the scores

    def _start(
        self, widths: dict[Hashable, int], exempt: Mapping[Hashable, npt.NDArray[np.bool_]]
    ) -> None:
        tested = []
        for key, width in widths.items():
            skipped = np.asarray(exempt.get(key, np.zeros(width)), dtype=bool)
            if skipped.shape != (width,):
                raise ValueError(f"{key}: {width} units, but exempt has shape {skipped.shape}")
            tested.append(~skipped)
        self._widths = widths
        self._owner = np.repeat(np.arange(len(widths)), list(widths.values()))
        self._active = np.flatnonzero(np.concatenate(tested))
        self._kept = self._active  # units whose scores are kept: an image may be drawn again
        self._wins: Floats = np.zeros(len(self._active))
        self._wealth: Floats = np.ones((len(self._active), 2, len(_SHARES)))
        self._refuted = np.zeros((len(self._active), 2), dtype=bool)
        if not len(self._active):
            self._verdict = "clean"

    def _draw_group(self) -> bool:
        """Draw the next group; False while its images have not come, or all were drawn."""
        if not self._pending and self._drawn == self._images:
            return False
        while len(self._pending) < _GROUP:
            # Images already met are 0 ... drawn - 1; all others are alike: the next new one.
            position = min(int(self._generator.integers(self._images)), self._drawn)
            self._pending.append(position)
            self._drawn = max(self._drawn, position + 1)
        return self._drawn <= len(self._rows)

    def _bet_on_group(self) -> None:
        rows = np.stack([self._rows[position] for position in self._pending])
        picked = rows[..., np.searchsorted(self._kept, self._active)]
        self._pending = []
        self._n_images = self._drawn
        wins = _quarter_wins(picked[:, 0], picked[:, 1])
        if self._groups:
            self._bet_on_leader(wins)
        self._bet_on_all(wins)
        if self._sensitive_wealth >= self._enough:
            self._verdict = "sensitive"
        elif not len(self._active):
            self._verdict = "clean"

    def _bet_on_leader(self, wins: npt.NDArray[np.int8]) -> None:
        """Bet that the unit which led so far is sensitive."""
        tau = self._threshold
        rate = self._wins / self._groups
        leader = int(np.abs(rate - 0.5).argmax())
        d = max(rate[leader], 1 - rate[leader])
        guess = (self._groups * d + _DOUBT * tau) / (self._groups + _DOUBT)
        if guess <= tau:
            return
        # Growth is highest at about (mean - tau) / variance; here h is 1 or, seldom, 1/2.
        bet = min(_ALL_BUT / tau, (guess - tau) / ((1 - guess) / 2))
        h = wins[:, :, leader] / 4
        gain = (h if rate[leader] > 0.5 else 1 - h) - tau
        self._sensitive_wealth *= float((1 + bet * gain).prod(axis=1).mean())

    def _bet_on_all(self, wins: npt.NDArray[np.int8]) -> None:
        """Bet that every unit is clean, and drop those of which that is now certain enough."""
        self._wealth *= self._payoffs[_codes(wins)].mean(axis=0)
        # A side that has won plays on with its unit; this keeps it finite.
        np.minimum(self._wealth, self._enough * len(_SHARES), out=self._wealth)
        self._refuted |= self._wealth.mean(axis=2) >= self._enough
        self._wins += wins.mean(axis=(0, 1)) / 4
        self._groups += 1
        keep = ~self._refuted.all(axis=1)
        if not keep.all():
            self._active, self._wins = self._active[keep], self._wins[keep]
            self._wealth, self._refuted = self._wealth[keep], self._refuted[keep]
            if 2 * len(self._active) <= len(self._kept):
                # Seldom, since it copies all there is: scores of decided units are let go.
                places = np.searchsorted(self._kept, self._active)
                self._rows = [row[:, places] for row in self._rows]
                self._kept = self._active


def _checked(
    scores: Mapping[Hashable, ScorePair], widths: dict[Hashable, int] | None
) -> tuple[dict[Hashable, ScorePair], int]:
    """Return the scores as arrays, and their number of rows."""
    if not scores:
        raise ValueError("expected the scores of at least one layer, got none")
    if widths is not None and scores.keys() != widths.keys():
        raise ValueError(f"expected scores of {list(widths)}, got {list(scores)}")
    block = {key: (np.asarray(low), np.asarray(high)) for key, (low, high) in scores.items()}
    rows = next(iter(block.values()))[0].shape[:1]
    for key, (low, high) in block.items():
        if low.ndim != 2 or low.shape != high.shape:
            raise ValueError(
                f"{key}: expected two arrays [images, units], got {low.shape} and {high.shape}"
            )
        if low.shape[:1] != rows:
            raise ValueError(f"{key}: expected {rows[0]} rows as elsewhere, got {len(low)}")
        if widths is not None and low.shape[1] != widths[key]:
            raise ValueError(f"{key}: expected {widths[key]} units, got {low.shape[1]}")
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"{key}: scores must be finite, found NaN or infinity")
    return block, rows[0]


def _round_robin(players: int) -> npt.NDArray[np.intp]:
    """Return rounds of disjoint pairs where all meet all, [players - 1, players / 2, 2]."""
    others = players - 1
    return np.array(
        [
            [(others, turn)]
            + [((turn + k) % others, (turn - k) % others) for k in range(1, players // 2)]
            for turn in range(others)
        ]
    )


_ROUNDS = _round_robin(_GROUP)


def _quarter_wins(low: npt.NDArray[Any], high: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """4 h of every pair in every round, [7, 4, units], from scores [8, units]."""
    one, other = _ROUNDS[..., 0], _ROUNDS[..., 1]
    low_one, low_other, high_one, high_other = low[one], low[other], high[one], high[other]
    wins = (high_one > low_other).astype(np.int8)
    for won in (high_one >= low_other, high_other > low_one, high_other >= low_one):
        wins += won
    return wins


def _codes(wins: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """Return the number, in 0 ... 5⁴ - 1, of every round's outcome, [7, units]."""
    codes = np.zeros((len(wins), wins.shape[2]), dtype=np.int16)
    for pair in range(wins.shape[1]):
        codes = codes * np.int16(5) + wins[:, pair]
    return codes


def _payoffs(threshold: float) -> Floats:
    """∏(1 + λ(τ − h)) of every outcome, against A >= τ and A <= 1 − τ, [5⁴, 2, bets]."""
    bets = _SHARES * min(_LARGEST_BET, 1 / max(1 - threshold, 1e-9))
    one = 1 + bets * (threshold - np.arange(5)[:, None] / 4)
    product = np.ones((1, len(bets)))
    for _ in range(_GROUP // 2):
        product = (product[:, None] * one).reshape(-1, len(bets))
    # Losing instead of winning every pair mirrors the digits: the list backwards.
    return np.stack([product, product[::-1]], axis=1)
