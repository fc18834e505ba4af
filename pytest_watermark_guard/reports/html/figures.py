"""Figures as SVG images for light and dark pages, drawn by matplotlib."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pytest_watermark_guard.reports.figure import (
    ALERT,
    INK,
    LINE,
    SHADES,
    legend_below,
    new_figure,
    shortened,
)
from pytest_watermark_guard.reports.html.comparison import SHOWN
from pytest_watermark_guard.reports.html.units import Judged
from pytest_watermark_guard.reports.probe_figure import SERIES, draw_distribution
from pytest_watermark_guard.reports.report import Report
from pytest_watermark_guard.reports.scores import TIERS, Scores
from pytest_watermark_guard.reports.survey import (
    ClassRanking,
    SurveyReport,
    draw_classes,
    draw_counts,
)
from pytest_watermark_guard.reports.text import count, printable

MISSING = "Figures are drawn by matplotlib, which is not installed: pip install matplotlib."
_SERIES_ON_DARK = ("#6cb6f0", "#f0a35e", "#5fcf9f", "#c8a2f0", "#a5adb6", "#f088b8")
# What each colour is on a dark page.
_ON_DARK = {
    INK: "#e6e8eb",
    LINE: "#7d8590",
    ALERT: "#ff8f85",
    **dict(zip(SERIES, _SERIES_ON_DARK, strict=True)),
    **dict(zip(SHADES, ("#1b3f5c", "#2a6699", "#4f9bd9", "#a8d4f7"), strict=True)),
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, and in the reader's own fonts
    "svg.hashsalt": "pytest-watermark-guard",  # the same bytes every time
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
}
# Matplotlib writes colours into style attributes; a rule may overrule those.
_DARK = "".join(
    f'[style*="{part}: {color}"]{{{part}:{other}!important}}'
    for color, other in _ON_DARK.items()
    for part in ("fill", "stroke")
)
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class Picture(NamedTuple):
    """A figure for the page."""

    uri: str  # data: URI
    alt: str  # what it shows, for those who cannot see it
    caption: str


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def distributions(judged: Judged) -> list[Picture]:
    """Draw for each layer how many units reach each d, a line for each scenario."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        return [_distribution(scores, judged.threshold) for scores in judged.report.by_layer]


def report_figure(report: Report, said: str) -> Picture:
    """Draw a report's own figure, of which its first line is `said`."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        return _picture(report._figure(), f"{said}; the numbers are in the table.", "")


def comparisons(survey: SurveyReport, rankings: Iterable[ClassRanking]) -> list[Picture]:
    """Draw several models: units above each tier, and classes ranked over the models."""
    import matplotlib

    pictures = []
    with matplotlib.rc_context(_STYLE):
        for scenario in survey.scenarios:
            for layer in survey.layers:
                counts = survey.counts(layer, scenario, TIERS[0])
                if len(counts) > 1 and any(number for number, _ in counts.values()):
                    pictures.append(_counts(survey, layer, scenario))
        return pictures + [_classes(ranking) for ranking in rankings]


def _distribution(layer_scores: Sequence[Scores], threshold: float) -> Picture:
    layer = layer_scores[0].layer
    figure, axis = _panel(3.9, 3.0)
    draw_distribution(axis, layer_scores, threshold)
    legend_below(figure, [axis], across=2)
    units = len(layer_scores[0].names)
    counts = (
        f"{scores.scenario} {scores.count(threshold)}, highest {scores.differentiability.max():.3f}"
        for scores in layer_scores
    )
    return _picture(
        figure,
        f"Units of {layer} by d. Of {units:,}, at or above {threshold:g}: {'; '.join(counts)}.",
        f"{layer}: how many of {units:,} units reach d, by scenario. Dashed: the threshold, "
        f"{threshold:g}.",
    )


def _counts(survey: SurveyReport, layer: str, scenario: str) -> Picture:
    models = survey.by_counts(layer, scenario)
    counts = survey.counts(layer, scenario, TIERS[0])
    figure, axis = _panel(4.4, 0.21 * len(models) + 1.1)
    draw_counts(axis, survey, layer, scenario)
    legend_below(figure, [axis])
    axis.set_title(f"{shortened(layer, 24)}, {shortened(scenario, 24)}")
    numbers = "; ".join(f"{name} {counts[name][0]} of {counts[name][1]:,}" for name in models)
    return _picture(
        figure,
        f"Units of {layer} with d ≥ {TIERS[0]:g} under {scenario} marks, by model: {numbers}.",
        f"Units of {layer} that react to {scenario} marks, by model.",
    )


def _classes(ranking: ClassRanking) -> Picture:
    order = ranking.ends(SHOWN)
    figure, axis = _panel(4.4, 0.21 * len(order) + 1.1)
    draw_classes(axis, ranking, SHOWN)
    legend_below(figure, [axis])
    axis.set_title(f"Classes, {shortened(ranking.scenario, 24)}")
    models = count(len(ranking.models), "model")
    title = f"Classes by mean A under {ranking.scenario} marks, over {models}"
    ends = [f"{ranking.names[i]} {ranking.mean[i]:.3f}" for i in order]
    cut = ", highest and lowest classes" if len(order) < len(ranking.names) else ""
    return _picture(
        figure,
        f"{title}. Highest: {', '.join(ends[:3])}; lowest: {', '.join(ends[:-4:-1])}.",
        f"{title}: a dot for each{cut}.",
    )


def _panel(width: float, height: float) -> tuple[Any, Any]:
    figure = new_figure(width, height)
    return figure, figure.subplots()


def _picture(figure: Any, alt: str, caption: str) -> Picture:
    out = io.StringIO()
    with warnings.catch_warnings():
        # The font has no Chinese, but only measures text here: the browser draws it.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(out, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = out.getvalue().replace(
        "</style>", f"@media (prefers-color-scheme: dark){{{_DARK}}}</style>", 1
    )
    uri = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
    return Picture(uri, printable(alt), printable(caption))
