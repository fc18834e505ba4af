"""What a verification found, and how to say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.errors import OwnershipError, SettingsError
from pytest_watermark_guard.reports.coin_draw import UNPROVEN, CoinDraw
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.drawing import Style, rendered, table
from pytest_watermark_guard.reports.figure import LINE, SHADES, new_figure, shortened
from pytest_watermark_guard.reports.report import Report, Row
from pytest_watermark_guard.reports.text import listed, printable
from pytest_watermark_guard.statistics.levels import check_level, check_reachable
from pytest_watermark_guard.statistics.sign_flips import FLIPS, MOST_ENUMERATED, pairs_needed

_FORMAT = DocumentFormat("ownership", "ownership report")
_EFFECTS = {
    "embeddings": (
        "moved them closer to the key image's embedding than the other one",
        "cosine similarity",
    ),
    "scores": (
        "changed the scores (compared with the other one) as it does in the other pairs",
        "the cosine similarity to the key image's scores",
    ),
    "labels": (
        "changed the labels (compared with the other one) as it does in the other pairs",
        "the share of images that get the key image's label",
    ),
}
ALPHA = 1e-3
"""Default level of a verdict."""


@dataclass(frozen=True)
class Null:
    """A model that was made without the key, put to the same test as `OwnershipReport`'s."""

    name: str
    p_value: float
    effect: float


@dataclass(frozen=True, repr=False)
class OwnershipReport(Report):
    """How a model reacts to a key.

    Attributes
    ----------
    model : str
    access : {"embeddings", "labels", "scores"}
        White box: the model's embeddings. Black box: predicted classes and nothing else, or a score
        for each class.
    key : str
        Hash of the key.
    p_value : float
        Exact: the chance of differences at least as large if the coins had been tossed only now,
        that is for any model that was made without knowledge of them. If `stop_at` is set, or a
        part of the pairs was asked, 1 / the largest e-value, which is valid whenever one stops.
    effect : float
        Mean of `differences`.
    differences : tuple of float
        For each pair: how much nearer the chosen perturbation moves images to the key image than
        its decoy. In cosine of embeddings or scores; for labels in the share of images that get the
        key image's label. Less what the clean encoder predicts, of embeddings and labels, if
        `adjusted`.
    agreement : tuple of tuples of float, [pairs][pairs]
        For labels and scores: how much two pairs change the scores alike, chosen against decoy, as
        inner products of means over images; a label counts as a score of 1. Less what the clean
        encoder predicts, if `adjusted`.
    chosen, decoy : float
        Mean nearness to the key image with the chosen perturbations and with their decoys.
    n_images : int
    images : str
        Which.
    queries : int
        Images that the model was run on.
    nulls : tuple of Null
        Models made without the key, and wrong keys, which the same test was tried on.
    version : str
        Of this package.
    e_value : float
        What a bet against fair coins has made of 1. Those of verifications with different pairs may
        be multiplied, and 1 / the product is a p-value; 0 in files of earlier versions.
    stop_at : float, optional
        The p-value at which the questions were to end.
    first_pair, key_pairs : int
        The first pair of the key that was asked, and how many it has.
    coin_draw : CoinDraw, optional
        What the coins follow from, if the key was committed.
    commitment : str
        What was published of such a key.
    as_committed : bool
        Whether it was asked with all images that were committed and no others, prepared as the key
        says.
    adjusted : bool
        Whether what the clean encoder did was subtracted: of embeddings the key holds it, and for
        labels and scores that encoder was asked.
    """

    model: str
    access: str
    key: str
    p_value: float
    effect: float
    differences: tuple[float, ...]
    chosen: float
    decoy: float
    n_images: int
    images: str
    queries: int
    nulls: tuple[Null, ...] = ()
    version: str = ""
    agreement: tuple[tuple[float, ...], ...] = ()
    e_value: float = 0.0
    stop_at: float | None = None
    first_pair: int = 0
    key_pairs: int = 0
    coin_draw: CoinDraw | None = None
    commitment: str = ""
    as_committed: bool = False
    adjusted: bool = False

    @property
    def pairs(self) -> int:
        """Number of pairs that were asked, each with a coin."""
        return len(self.differences)

    @property
    def agreeing(self) -> int:
        """Pairs that speak for the coins.

        Of embeddings, those whose chosen one moves images nearer to the key image; of labels and
        scores, those that agree with the sum of the other pairs.
        """
        if not self.agreement:
            return sum(difference > 0 for difference in self.differences)
        products = np.array(self.agreement)
        return int((products.sum(axis=1) > np.diag(products)).sum())

    @property
    def is_evidence(self) -> bool:
        """Whether the p-value holds for those, too, who do not trust the key's owner.

        The coins follow from a commitment and a later value, the images were committed as well, and
        pairs were asked from the first one on.
        """
        return self.coin_draw is not None and self.as_committed and self.first_pair == 0

    @property
    def _in_parts(self) -> bool:
        """Whether the p-value is one that holds whenever one stops."""
        return self.stop_at is not None or self.pairs < self.key_pairs

    @property
    def _sampled(self) -> bool:
        """Whether the p-value is over some of the ways in which the coins could have fallen."""
        return bool(self.agreement) and self.pairs > MOST_ENUMERATED

    @property
    def _least_p_value(self) -> float:
        """The smallest p-value that so many pairs can give."""
        if not self.agreement or self._in_parts:
            return 2.0**-self.pairs
        if self._sampled:
            return 1 / (FLIPS + 1)
        # With no lead, all coins the other way round would agree as well.
        return 2.0**-self.pairs * (1 if any(self.differences) else 2)

    def carries(self, alpha: float = ALPHA) -> bool:
        """Tell whether the model was made with the key, at a chance of `alpha` to say so wrongly.

        The decoys calibrate it: the p-value is exact without any null. Nulls are a check on that.

        Raises
        ------
        OwnershipError
            If one of n nulls reaches `alpha` / n, or the least p-value that there is: something
            that should know nothing of the key does, and there is no verdict.
        SettingsError
            If `alpha` is not in (0, 1), or no result of this many pairs could reach it.
        """
        check_level("alpha", alpha)
        if self.stop_at is not None and self.stop_at > alpha:
            raise SettingsError(
                f"questions were to stop at {self.stop_at:g}, and alpha is {alpha:g}: ask with "
                f"stop_at={alpha:g}"
            )
        check_reachable(alpha, self.pairs, self._least_p_value)
        # The more nulls there are, the likelier one of them is below alpha by chance.
        least = max(alpha / max(len(self.nulls), 1), self._least_p_value)
        wrong = [null for null in self.nulls if null.p_value <= least]
        if wrong:
            raise OwnershipError(
                f"no verdict: {wrong[0].name}, which should know nothing of the key, gives "
                f"p = {wrong[0].p_value:.3g} in the same test. Either it was made with the key, or "
                "the key was made after it was seen"
            )
        return self.p_value <= alpha

    def queries_needed(self, alpha: float = ALPHA, power: float = 0.9) -> int | None:
        """Tell how many queries a classifier that responds like this one will need.

        For the plan of a verification with ``stop_at=alpha`` and as many images as here: rehearse
        it on a classifier of your own. The chance is over the order of the pairs. With a clean
        encoder rehearse with ``stop_at`` as well, a small one: a pair is then predicted by those
        before it, as it will be, and else by all others, so that the number would be too low.

        Parameters
        ----------
        alpha : float, default 1e-3
        power : float, default 0.9
            The chance that so many are enough.

        Returns
        -------
        int or None
            None if all pairs that were asked would not be enough.

        Raises
        ------
        SettingsError
            If `alpha` or `power` is not in (0, 1).
        """
        check_level("alpha", alpha)
        check_level("power", power)
        agreement = self.agreement or np.zeros((self.pairs, self.pairs))
        pairs = pairs_needed(agreement, self.differences, alpha, power)
        return None if pairs is None else self.n_images * 2 * pairs + 1

    def sentence(self) -> str:
        """Say what was found, and what it rests on, so that a lawyer can read it."""
        did, unit = _EFFECTS[self.access]
        by = f" (on average by {self.effect:+.3f} in {unit})"
        if self.adjusted:
            more = (
                "by more than in"
                if self.access == "embeddings"
                else "beyond what is predicted from"
            )
            did = f"{did}, {more} the encoder that the key was made for,"
        if self.agreement:
            than = " than predicted" if self.adjusted and self.access == "labels" else ""
            by = f"; besides, {unit} is higher{than} by {self.effect:+.3f} with it"
        which = ""
        if self.pairs < self.key_pairs:
            which = f" Asked were pairs {self.first_pair + 1} to {self.first_pair + self.pairs}."
        tossed = "its owner tossed" if self.coin_draw is None else "nobody could choose"
        text = (
            f"The key {self.key[:16]} holds {self.key_pairs or self.pairs} pairs of patterns, and "
            f"in each pair a coin that {tossed} decided which pattern was to be embedded.{which} "
            f"Printed on {self.n_images} images, the pattern that the coin had chosen {did} in "
            f"{self.agreeing} of {self.pairs} pairs{by}, for the model {self.model!r}. For a model "
            f"that was made without knowledge of the coins, a result at least as strong has a "
            f"probability of {self._probability()}."
        )
        if self.nulls:
            least = min(null.p_value for null in self.nulls)
            text += (
                f" For comparison, the same test of {listed(null.name for null in self.nulls)} "
                f"gave {'a probability' if len(self.nulls) == 1 else 'probabilities'} of "
                f"{'' if len(self.nulls) == 1 else 'at least '}{least:.3g}."
            )
        return f"{text} {self._grounds()}"

    def _probability(self) -> str:
        if self._in_parts:
            return (
                f"at most {self.p_value:.3g} (pairs were asked one after the other, and the "
                "bound holds whenever one stops)"
            )
        ways = f"{FLIPS:,} random ones of the" if self._sampled else "all"
        return (
            f"{self.p_value:.3g} (exact, over {ways} {2**self.pairs:,} ways in which the coins "
            "could have fallen)"
        )

    def _grounds(self) -> str:
        """Say what the result rests on."""
        if self.coin_draw is None:
            return UNPROVEN
        text = self.coin_draw.sentences(self.commitment)
        if not self.as_committed:
            return (
                f"{text} But the model was asked with {self.images}, and not with all images that "
                "were committed, prepared as they were committed: what is picked later decides the "
                "result too. This is no evidence for anyone else."
            )
        if self.first_pair > 0:
            return (
                f"{text} But the pairs before were not asked this time: this is no evidence by "
                f"itself. Multiply its e-value, {self.e_value:.3g}, by that of those pairs; 1 / "
                "the product is the probability."
            )
        encoder = ""
        if self.adjusted and self.access != "embeddings":
            encoder = (
                "that the encoder that the key was made for was run by code that does not know the "
                "coins; "
            )
        return (
            f"{text} This rests on the following: that the commitment was published before that "
            f"value was known; that the value is the one named, as its source writes it; {encoder}"
            "and that no other commitment, model or way of asking was tried (of k, multiply the "
            "probability by k)."
            + ("" if self.nulls else " The verifier tried no model of his own for comparison.")
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OwnershipReport:
        """Take what `to_dict` gave."""
        if data["access"] not in _EFFECTS:
            raise ValueError(f"access is {data['access']!r}")
        for name in ("p_value", "effect", "chosen", "decoy", "e_value"):
            if not isinstance(data.get(name, 0.0), int | float):
                raise ValueError(f"{name} is {data[name]!r}")
        # Fields may be added within a version of the format.
        data = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        draw = data.get("coin_draw")
        parts = {
            "nulls": tuple(Null(**null) for null in data["nulls"]),
            "differences": tuple(map(float, data["differences"])),
            "agreement": tuple(tuple(map(float, row)) for row in data.get("agreement", ())),
            "coin_draw": None if draw is None else CoinDraw(**draw),
        }
        return cls(**{**data, **parts})

    def to_html(self, path: str | Path) -> None:
        """Write the report to one HTML file that opens offline."""
        from pytest_watermark_guard import write_html

        write_html(path, [], owned=[self])

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}, asked for {self.access}: p = {self.p_value:.3g}"
        yield f"{self.agreeing} of {self.pairs} pairs agree with the key {self.key[:16]}"
        yield "evidence: the key was committed" if self.is_evidence else "a check, no evidence"
        yield from (
            f"{null.name}, made without the key: p = {null.p_value:.3g}" for null in self.nulls
        )

    def _rows(self) -> Iterator[Row]:
        for name, p_value, effect in (
            (self.model, self.p_value, self.effect),
            *((null.name, null.p_value, null.effect) for null in self.nulls),
        ):
            yield {"model": name, "access": self.access, "p_value": p_value, "difference": effect}

    def _parts(self, style: Style) -> Iterator[RenderableType]:
        return _parts([self], style)

    def _figure(self) -> Any:
        figure = new_figure(6, 3.2)
        axis = figure.subplots()
        axis.bar(range(1, self.pairs + 1), sorted(self.differences, reverse=True), color=SHADES[2])
        axis.axhline(0, color=LINE, linewidth=0.8)
        axis.set_xlabel("pairs of patterns, from the one that agrees most with the key")
        axis.set_ylabel(f"lead of the chosen pattern, {_EFFECTS[self.access][1]}")
        axis.set_title(
            f"{shortened(self.model)}: {self.agreeing} of {self.pairs} pairs agree, "
            f"p = {self.p_value:.3g}",
            fontsize=10,
        )
        return figure

    def save(self, path: str | Path) -> None:
        """Write a JSON file."""
        _FORMAT.write(path, {"report": self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> OwnershipReport:
        """Read what `save` wrote.

        Raises
        ------
        ReportError
            If the file cannot be read or holds something else.
        """
        with _FORMAT.reading_json(path) as data:
            return cls.from_dict(data["report"])


_COLUMNS = ("model", "asked for", "p-value", "pairs", "chosen", "decoy", "difference", "queries")


def render_ownership(
    reports: Sequence[OwnershipReport],
    *,
    width: int = 80,
    color: bool = False,
    ascii_only: bool = False,
) -> str:
    """Draw one table of all verifications, and under it what each of them says."""
    style = Style(width, ascii_only)
    return rendered(_parts(reports, style), style, color)


def _parts(reports: Sequence[OwnershipReport], style: Style) -> Iterator[RenderableType]:
    yield Text("Ownership\n", style="bold")
    rows = []
    for report in reports:
        rows.append(
            (
                printable(report.model),
                report.access,
                f"{report.p_value:.3g}",
                f"{report.agreeing}/{report.pairs}",
                f"{report.chosen:.3f}",
                f"{report.decoy:.3f}",
                f"{report.effect:+.3f}",
                f"{report.queries:,}",
            )
        )
        rows += [
            (f"  null: {printable(null.name)}", report.access, f"{null.p_value:.3g}", "", "", "",
             f"{null.effect:+.3f}", "")
            for null in report.nulls
        ]  # fmt: skip
    yield table(style, "", _COLUMNS, rows, words=(0, 1))
    for report in reports:
        yield Text(f"{printable(report.sentence())}\n")
