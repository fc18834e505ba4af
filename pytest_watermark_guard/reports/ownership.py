"""What a verification found, and how to say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from pytest_watermark_guard.errors import OwnershipError, SettingsError
from pytest_watermark_guard.reports.documents import DocumentFormat
from pytest_watermark_guard.reports.drawing import Style, rendered, table
from pytest_watermark_guard.reports.figure import LINE, SHADES, new_figure, shortened
from pytest_watermark_guard.reports.report import Report, Row
from pytest_watermark_guard.reports.text import listed, printable

_FORMAT = DocumentFormat("ownership", "ownership report")
_EFFECTS = {
    "embeddings": ("moved them closer to the key image's embedding", "cosine similarity"),
    "scores": ("moved their scores closer to those of the key image", "cosine similarity"),
    "labels": ("got them the key image's label more often", "share of images"),
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
        that is for any model that was made without knowledge of them.
    effect : float
        Mean of `differences`.
    differences : tuple of float
        For each pair: how much nearer the chosen perturbation moves images to the key image than
        its decoy. In cosine of embeddings or scores; for labels in the share of images that get the
        key image's label.
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

    @property
    def pairs(self) -> int:
        """Number of pairs, each with a coin."""
        return len(self.differences)

    @property
    def agreeing(self) -> int:
        """Pairs of which the chosen one moves images nearer to the key image."""
        return sum(difference > 0 for difference in self.differences)

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
        if not 0 < alpha < 1:
            raise SettingsError(f"alpha must be in (0, 1), got {alpha!r}")
        check_reachable(alpha, self.pairs)
        # The more nulls there are, the likelier one of them is below alpha by chance.
        least = max(alpha / max(len(self.nulls), 1), 2.0**-self.pairs)
        wrong = [null for null in self.nulls if null.p_value <= least]
        if wrong:
            raise OwnershipError(
                f"no verdict: {wrong[0].name}, which should know nothing of the key, gives "
                f"p = {wrong[0].p_value:.2g} in the same test. Either it was made with the key, or "
                "the key was made after it was seen"
            )
        return self.p_value <= alpha

    def sentence(self) -> str:
        """Say what was found so that a lawyer can read it."""
        did, unit = _EFFECTS[self.access]
        total = 2**self.pairs
        text = (
            f"The key {self.key[:16]} holds {self.pairs} pairs of patterns, and in each pair a "
            f"secret fair coin decided which pattern was to be embedded. Printed on "
            f"{self.n_images} images, the pattern that the coin had chosen "
            f"{did} than the other one in "
            f"{self.agreeing} of {self.pairs} pairs (on average by {self.effect:+.3f} in {unit}), "
            f"for the model {self.model!r}. For a model that was made without knowledge of the "
            f"coins, a result at least as strong has a probability of {self.p_value:.2g} "
            f"(exact, over all {total:,} ways in which the coins could have fallen)."
        )
        if self.nulls:
            least = min(null.p_value for null in self.nulls)
            text += (
                f" For comparison, the same test of {listed(null.name for null in self.nulls)} "
                f"gave {'a probability' if len(self.nulls) == 1 else 'probabilities'} of "
                f"{'' if len(self.nulls) == 1 else 'at least '}{least:.2g}."
            )
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OwnershipReport:
        """Take what `to_dict` gave."""
        nulls = tuple(Null(**null) for null in data["nulls"])
        numbers = tuple(map(float, data["differences"]))
        return cls(**{**data, "differences": numbers, "nulls": nulls})

    def to_html(self, path: str | Path) -> None:
        """Write the report to one HTML file that opens offline."""
        from pytest_watermark_guard import write_html

        write_html(path, [], owned=[self])

    def _lines(self) -> Iterator[str]:
        yield f"{self.model}, asked for {self.access}: p = {self.p_value:.2g}"
        yield f"{self.agreeing} of {self.pairs} pairs agree with the key {self.key[:16]}"
        yield from (
            f"{null.name}, made without the key: p = {null.p_value:.2g}" for null in self.nulls
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
            f"p = {self.p_value:.2g}",
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


def check_reachable(alpha: float, pairs: int) -> None:
    """Raise `SettingsError` for a level that no result of so many pairs can reach."""
    if 2.0**-pairs > alpha:
        raise SettingsError(
            f"alpha {alpha:g} cannot be reached with {pairs} pairs, whose p-value is at least "
            f"{2.0**-pairs:.2g}: make a key with more pairs, or take a larger alpha"
        )


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
                f"{report.p_value:.2g}",
                f"{report.agreeing}/{report.pairs}",
                f"{report.chosen:.3f}",
                f"{report.decoy:.3f}",
                f"{report.effect:+.3f}",
                f"{report.queries:,}",
            )
        )
        rows += [
            (f"  null: {printable(null.name)}", report.access, f"{null.p_value:.2g}", "", "", "",
             f"{null.effect:+.3f}", f"{report.queries:,}")
            for null in report.nulls
        ]  # fmt: skip
    yield table(style, "", _COLUMNS, rows, words=(0, 1))
    for report in reports:
        yield Text(f"{printable(report.sentence())}\n")
