"""Golden texts: run with ``--update-golden`` to write them anew, then read the difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pytest_watermark_guard import Impact, ProbeReport, Scores, judge
from pytest_watermark_guard.reports.early_stop import Decision, EarlyStop
from pytest_watermark_guard.reports.terminal import render_reports

GOLDEN = Path(__file__).parent / "golden"


def scores(layer, scenario, areas, names=None):
    areas = np.array(areas, dtype=float)
    names = names or tuple(map(str, range(len(areas))))
    return (layer, scenario), Scores(layer, scenario, areas, areas * 0 + 0.002, 256, names)


CLASSES = ("beach", "carton", "German short-haired pointer", "safe")
PLAIN = ProbeReport(
    model="torchvision:resnet18@IMAGENET1K_V1",
    baseline="256 images of the built-in set v1",
    n_images=256,
    seed=17,
    scores=dict(
        [
            scores("logits", "chinese", [0.5, 0.97, 0.71, 0.2], CLASSES),
            scores("features", "chinese", np.linspace(0.02, 0.93, 512)),
            scores("logits", "arabic_numerals", [0.5, 0.52, 0.55, 0.49], CLASSES),
            scores("features", "arabic_numerals", np.linspace(0.4, 0.6, 512)),
        ]
    ),
    impact={
        "chinese": Impact(0.382, 1, "carton", 0.061, 0.741, 0.623),
        "arabic_numerals": Impact(0.0, None, None, 0.0, 0.741, 0.741),
    },
    preprocessing="torchvision's preset of resnet18@IMAGENET1K_V1",
    device="cpu",
    precision="float32",
    notes=("class names are assumed to be ImageNet's: the model has 1000 logits",),
)
HOSTILE = replace(
    PLAIN,
    model="evil\n\x1b[2J[bold]model[/bold]",
    device="\x1b[2Jcpu",
    scores=dict([scores("logits", "latin", [0.99], ("[red]a\nb\x07" + "的" * 40,))]),
    impact={},
    notes=("[link=x]note[/link]\r",),
)
HEADLESS = replace(
    PLAIN,
    model="Backbone",
    scores={("features", "chinese"): PLAIN["features", "chinese"]},
    impact={},
    notes=("no head found",),
)
EARLY = replace(
    PLAIN,
    n_images=998,
    early_stop=EarlyStop(
        0.95,
        0.001,
        "sensitive",
        998,
        {
            ("logits", "chinese"): Decision("sensitive", 310),
            ("features", "chinese"): Decision(None, 998),
            ("logits", "arabic_numerals"): Decision("clean", 72),
            ("features", "arabic_numerals"): Decision("clean", 80),
        },
    ),
)
FAILED = judge(PLAIN, 0.9, {"carton": "shipping labels", "beach": "old"})
PASSED = judge(PLAIN, 0.99)


def state(model, largest, n_images=256, ends=None):
    """A report of one layer whose largest d is given, with the interval of that d."""
    where, found = scores("logits", "chinese", [0.5, largest, 0.6, 0.45], CLASSES)
    found = replace(found, n_images=n_images, largest=ends)
    baseline = f"{n_images} images of photos/"
    return replace(
        PLAIN,
        model=model,
        scores={where: found},
        impact={},
        notes=(),
        n_images=n_images,
        baseline=baseline,
    )


STATES = [
    state("fails", 0.99),
    state("strong", 0.87),
    state("inconclusive", 0.99, n_images=12),
    state("passes", 0.75),
    state("clean", 0.6, ends=(0.55, 0.65)),
]
CASES = {
    "states-80": ([(report, [judge(report)]) for report in STATES], {"width": 80}),
    "plain-80": ([(PLAIN, [])], {"width": 80}),
    "plain-120": ([(PLAIN, [])], {"width": 120}),
    "narrow-60": ([(PLAIN, [])], {"width": 60}),
    "ascii-80": ([(PLAIN, [])], {"width": 80, "ascii_only": True}),
    "two-80": ([(HEADLESS, []), (PLAIN, [])], {"width": 80}),
    "gates-80": ([(PLAIN, [FAILED, PASSED])], {"width": 80}),
    "each-80": ([(EARLY, [judge(EARLY, 0.95)])], {"width": 80}),
    "hostile-80": ([(HOSTILE, [])], {"width": 80}),
    "color-80": ([(PLAIN, [FAILED])], {"width": 80, "color": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case, update_golden, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    entries, options = CASES[case]
    text = render_reports(entries, 0.95, **options)
    path = GOLDEN / f"{case}.txt"
    if update_golden:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("width", [72, 80, 120])
def test_no_line_is_wider_than_the_terminal(width):
    text = render_reports([(PLAIN, []), (HEADLESS, [])], 0.95, width=width)
    assert max(map(len, text.splitlines())) <= width


def test_a_narrow_terminal_costs_no_figure():
    text = render_reports([(PLAIN, [])], 0.95, width=30)
    for figure in ("288", "176", "0.980", "38.2%", "0.029-0.037"):
        assert figure in text


def test_no_color_is_honoured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = render_reports([(PLAIN, [])], 0.95, color=True)
    assert "\x1b[31m" not in text


def test_text_from_outside_stays_text():
    text = render_reports([(HOSTILE, [])], 0.95)
    assert "\x1b" not in text
    assert "[bold]model[/bold]" in text
    assert "[red]a\\nb\\x07" in text
