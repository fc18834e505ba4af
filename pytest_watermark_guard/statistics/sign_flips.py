"""Exact tests that coins, which chose one of each pair, left a trace: at the end, or earlier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_PAIRS = 44  # two halves of 2^22 sums each
_ROUNDING = 1e-9  # of the largest sum: sums in another order must not differ
# How boldly is bet on a pair, for differences of 1 on average: bold bets gain twice a pair where
# all agree, careful ones lose little where many do not.
_BETS = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
_ORDERS = 1000  # of pairs, to tell how many will be needed
MOST_ENUMERATED = 20  # pairs, of which all signs are tried
FLIPS = 2**20
_AT_ONCE = 2**14


def sign_flip_p_value(differences: npt.ArrayLike) -> float:
    """Return the chance that fair coins would have made a sum of differences at least as large.

    A difference is what a pair's coin chose, minus what it did not choose. The result is P(Σ sᵢ
    |dᵢ| ≥ Σ dᵢ) over independent fair signs sᵢ: at least 2^−pairs, and 1 where nothing differs. All
    2^pairs outcomes count; none is sampled. No pair, more than `MOST_PAIRS`, or a difference that
    is not finite is a ValueError.

    Notes
    -----
    Fisher's randomisation test. The coins alone make it valid: the differences may be distributed
    in any way and depend on each other. Sums of the two halves of the pairs are sorted and matched
    (Pagano and Tritchler, 1983, count the same by convolution).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not 1 <= len(values) <= MOST_PAIRS:
        raise ValueError(f"differences: a list of 1 to {MOST_PAIRS}, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("differences: not all are finite")
    sizes = np.abs(values)
    half = len(sizes) // 2
    left, right = _sums(sizes[:half]), np.sort(_sums(sizes[half:]))
    least = values.sum() - _ROUNDING * sizes.sum()
    below = np.searchsorted(right, least - left, side="left")
    reached = len(left) * len(right) - int(below.sum())
    return float(reached / 2 ** len(sizes))


def less_expected(differences: npt.ArrayLike, expected: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Subtract from differences [pairs] what was expected of them, as far as it is found in them.

    That is the share s = Σ dᵢ eᵢ / Σ eᵢ², in [0, 1]. If the coin of a pair changes, both its
    difference and what was expected change their sign, and so does the result: a test that flips
    signs stays exact, whatever was expected.
    """
    values, foreseen = (np.asarray(v, dtype=np.float64) for v in (differences, expected))
    total = float(np.square(foreseen).sum())
    share = min(max(float((values * foreseen).sum()) / total, 0.0), 1.0) if total > 0 else 0.0
    return np.asarray(values - share * foreseen)


def _sums(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sums under all signs, [2^n]."""
    sums = np.zeros(1)
    for size in sizes:
        sums = np.concatenate([sums - size, sums + size])
    return sums


def sign_flip_e_values(differences: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the evidence after each pair [pairs]: what a bet against fair coins has made of 1.

    With fair coins it ever reaches 1 / α with a chance of at most α, so that one may look after
    each pair and stop at will; and what several runs with different pairs give may be multiplied.
    Differences, float [pairs] or [pairs, statistics], are as for `sign_flip_p_value`; those of
    several statistics are added up, each in units of its root mean square so far.

    Notes
    -----
    The mean over bets b of Π exp(b dᵢ) / cosh(b dᵢ), with d in units of the root mean square of
    the pairs up to i. Given all |dᵢ|, each factor is 1 on average over a fair sign: a test
    martingale (Ville, 1939; Ramdas et al., 2023, arXiv 2210.01948).
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if not values.size or not np.isfinite(values).all():
        raise ValueError("differences: at least one, and all finite")
    counts = np.arange(1, len(values) + 1)[:, None]
    units = np.sqrt(np.square(values).cumsum(axis=0) / counts)
    shares = np.divide(values, units, out=np.zeros_like(values), where=units > 0)
    scaled = shares.sum(axis=1)
    bets = scaled[:, None] * _BETS
    # log cosh x, where cosh itself would be infinite.
    log_cosh = np.abs(bets) + np.log1p(np.exp(-2 * np.abs(bets))) - np.log(2)
    logs = (bets - log_cosh).cumsum(axis=0)
    return np.asarray(np.exp(logs).mean(axis=1))


def agreement_p_value(agreement: npt.ArrayLike, lead: npt.ArrayLike, seed: int) -> float:
    """Return the chance that fair coins would have made pairs agree as much, and lead as far.

    Parameters
    ----------
    agreement : array of float, shape [pairs, pairs]
        Inner products of what pairs changed: chosen minus not chosen. Its diagonal does not count.
    lead : array of float, shape [pairs]
        As for `sign_flip_p_value`, for what is known beforehand to be in the chosen one's favour.
    seed : int
        Of the random signs; who made the pairs must not have known it.

    Returns
    -------
    float
        P(T(s) ≥ T(1)) over independent fair signs s, of T(s) = Σ_{i≠j} sᵢ sⱼ agreementᵢⱼ + Σ sᵢ
        leadᵢ, each sum in units of its standard deviation over s. Over all signs of up to 20
        pairs, and of more over `FLIPS` random ones and the coins' own, which is exact as well
        (Phipson and Smyth, 2010), and at least 1 / (`FLIPS` + 1).

    Raises
    ------
    ValueError
        If not all are finite.
    """
    products, steps = np.array(agreement, dtype=np.float64), np.asarray(lead, dtype=np.float64)
    if not (np.isfinite(products).all() and np.isfinite(steps).all()):
        raise ValueError("agreement and lead: not all are finite")
    pairs = len(steps)
    np.fill_diagonal(products, 0)
    products = _in_units(products, np.sqrt(2 * np.square(products).sum()))
    steps = _in_units(steps, np.sqrt(np.square(steps).sum()))
    everything = pairs <= MOST_ENUMERATED
    generator = np.random.default_rng(seed)
    observed = products.sum() + steps.sum()
    reached, total = (0, 0) if everything else (1, 1)
    for start in range(0, 2**pairs if everything else FLIPS, _AT_ONCE):
        if everything:
            numbers = np.arange(start, min(start + _AT_ONCE, 2**pairs))
            signs = ((numbers[:, None] >> np.arange(pairs)) & 1) * 2.0 - 1
        else:
            signs = generator.integers(2, size=(_AT_ONCE, pairs)) * 2.0 - 1
        sums = ((signs @ products) * signs).sum(axis=1) + signs @ steps
        reached += int((sums >= observed - _ROUNDING * pairs).sum())
        total += len(signs)
    return reached / total


def agreement_gains(agreement: npt.ArrayLike, lead: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return what each pair says for the coins, given those before it: [pairs, 2].

    How much it agrees with them, and its lead; for `sign_flip_e_values`. What comes before a pair
    does not depend on its coin, so that the sign of both is fair without a mark.
    """
    products = np.asarray(agreement, dtype=np.float64)
    return np.stack([np.tril(products, -1).sum(axis=1), np.asarray(lead, dtype=np.float64)], axis=1)


def pairs_needed(
    agreement: npt.ArrayLike, lead: npt.ArrayLike, alpha: float, power: float
) -> int | None:
    """Return after how many of these pairs e-values reach 1 / `alpha` with a chance of `power`.

    The chance is over the order of the pairs. None if all of them are not enough.
    """
    products, steps = np.asarray(agreement), np.asarray(lead)
    generator = np.random.default_rng(0)
    reached = np.full(_ORDERS, np.inf)
    for number in range(_ORDERS):
        order = generator.permutation(len(steps))
        gains = agreement_gains(products[np.ix_(order, order)], steps[order])
        enough = sign_flip_e_values(gains) >= 1 / alpha
        if enough.any():
            reached[number] = int(enough.argmax()) + 1
    needed = np.quantile(reached, power, method="higher")
    return int(needed) if np.isfinite(needed) else None


def _in_units(values: npt.NDArray[np.float64], unit: float) -> npt.NDArray[np.float64]:
    return values / unit if unit > 0 else values
