"""What is written for GitHub, read by other eyes than those that wrote it."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt

from pytest_watermark_guard import ProbeReport, Scores, judge
from pytest_watermark_guard.reports.github_annotations import (
    SENSITIVE,
    commands,
    gate_failure,
)
from pytest_watermark_guard.reports.github_summary import step_summary
from pytest_watermark_guard.reports.known_units import KnownUnit, KnownUnits

GOLDEN = Path(__file__).parent / "golden"


def scores(layer, scenario, areas, names=None):
    areas = np.array(areas, dtype=float)
    names = names or tuple(map(str, range(len(areas))))
    return (layer, scenario), Scores(layer, scenario, areas, areas * 0 + 0.002, 256, names)


PLAIN = ProbeReport(
    model="torchvision:resnet18@IMAGENET1K_V1",
    baseline="256 images of the built-in set v1",
    n_images=256,
    seed=17,
    scores=dict(
        [
            scores("logits", "chinese", [0.5, 0.89, 0.71], ("beach", "carton", "safe")),
            scores("features", "chinese", np.linspace(0.02, 0.88, 512)),
            scores("logits", "latin", [0.5, 0.52, 0.55], ("beach", "carton", "safe")),
            scores("features", "latin", np.linspace(0.4, 0.6, 512)),
        ]
    ),
    device="cpu",
    precision="float32",
    notes=("class names are assumed to be ImageNet's: the model has 1000 logits",),
    weights="ab",
)
HEADLESS = replace(
    PLAIN,
    model="Backbone",
    scores={("features", "chinese"): PLAIN["features", "chinese"]},
    notes=("no head found",),
)
KNOWN = KnownUnits(
    "wm-known-units.toml",
    tuple(
        KnownUnit(PLAIN.model, "ab", layer, "chinese", index, name, d, 0.8, date(2026, 5, 1))
        for layer, index, name, d in (
            ("logits", 1, "carton", 0.89),
            ("features", 2, "2", 0.977),
            ("features", 0, "0", 0.97),
        )
    ),
    today=date(2026, 5, 2),
)
FAILED = judge(PLAIN, 0.9, {"features:1": "looked at", "beach": "old"}, KNOWN)
PASSED = judge(PLAIN, 0.99)
EVIL = "a|b `c` <img src=x onerror=alert(1)> **d** [e](https://f.example) &lt; ::error::\n# g\\"
HOSTILE = replace(
    PLAIN,
    model=EVIL,
    scores=dict([scores("logits", "latin", [0.99], (EVIL,))]),
    notes=(EVIL,),
)
CASES = {
    "step-gates": [(PLAIN, [FAILED, PASSED])],
    "step-two": [(HEADLESS, []), (PLAIN, [PASSED])],
    "step-hostile": [(HOSTILE, [judge(HOSTILE, 0.95)])],
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case, update_golden):
    text = step_summary(CASES[case], 0.95, {})
    path = GOLDEN / f"{case}.md"
    if update_golden:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text("utf-8")


def tokens(text):
    found = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    return [*found, *(child for token in found for child in token.children or ())]


@pytest.mark.parametrize("case", CASES)
def test_names_stay_text(case):
    text = step_summary(CASES[case], 0.95, {})
    kinds = {token.type for token in tokens(text)}
    assert kinds <= {
        f"{part}_{end}"
        for part in ("heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td")
        for end in ("open", "close")
    } | {"inline", "text", "text_special"}


def test_names_are_shown_as_they_are():
    rows = tokens(step_summary(CASES["step-hostile"], 0.95, {}))
    shown = ["".join(c.content for c in token.children) for token in rows if token.type == "inline"]
    spelled = EVIL.replace("\n", "\\n")
    assert f"{spelled}: failed" not in shown  # too long for a heading: cut
    assert any(
        text.startswith("a|b `c` <img src=x onerror=alert(1)> **d** [e](http") for text in shown
    )
    assert f"Note: {spelled}." in shown


def test_every_row_of_a_table_has_the_cells_of_its_header():
    for entries in CASES.values():
        html = MarkdownIt("commonmark").enable("table").render(step_summary(entries, 0.95, {}))
        for table in html.split("<table>")[1:]:
            rows = table.split("</table>")[0].split("<tr>")[1:]
            assert len({row.count("<td") + row.count("<th") for row in rows}) == 1


def parsed(line):
    """Read a workflow command as GitHub's runner does."""
    assert line.startswith("::")
    command, _, data = line[2:].partition("::")
    name, _, rest = command.partition(" ")
    told = dict(entry.split("=", 1) for entry in rest.split(","))
    escapes = {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}
    for value in (data, *told.values()):
        assert value.count("%") == sum(value.count(escape) for escape in escapes)
    return name, {key: unquote(value) for key, value in told.items()}, unquote(data)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_annotation_says_what_it_was_told(text):
    file = text.replace("/", "").replace("\0", "") or "x"
    (line,) = commands("error", [(SENSITIVE, text, (f"/repo/sub/{file}", 7))], "/repo")
    assert len(line.split("\n")) == len(line.split("\r")) == 1
    name, told, data = parsed(line)
    assert (name, data) == ("error", text)
    if file not in (".", ".."):
        assert told == {"file": f"sub/{file}", "line": "7", "title": "Watermark-sensitive model"}


@pytest.mark.parametrize(
    ("place", "workspace"),
    [(None, "/repo"), (("/elsewhere/t.py", 7), "/repo"), (("/repo/t.py", 7), "")],
)
def test_a_place_that_github_does_not_know_is_left_out(place, workspace):
    (line,) = commands("error", [(SENSITIVE, "text", place)], workspace)
    assert line == "::error title=Watermark-sensitive model::text"


def test_an_annotation_tells_the_worst_units():
    assert gate_failure(FAILED).splitlines() == [
        "torchvision:resnet18@IMAGENET1K_V1 is watermark-sensitive: 46 of 512 features react to "
        "chinese marks (d >= 0.9).",
        "features unit 0, chinese: d 0.980",
        "features unit 3, chinese: d 0.975",
        "features unit 4, chinese: d 0.973",
        "... and 43 more",
    ]
    assert len(gate_failure(judge(HOSTILE, 0.95)).splitlines()) == 2
