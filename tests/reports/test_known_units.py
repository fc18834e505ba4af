"""Known units, from the record to the verdict, without a run of pytest."""

from __future__ import annotations

import datetime
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pytest_watermark_guard import ProbeReport, Scores, judge
from pytest_watermark_guard.plugin.known_units_file import read_known, updated_units, write_known
from pytest_watermark_guard.reports.known_units import KnownUnit, KnownUnits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TODAY = datetime.date(2026, 5, 1)
D = st.integers(5001, 10_000).map(lambda n: n / 10_000)
RECORDS = st.builds(
    KnownUnit,
    model=st.text(st.characters(exclude_categories=["Cs"])),
    weights=st.text("0123456789abcdef"),
    layer=st.text(st.characters(exclude_categories=["Cs"])),
    script=st.text(st.characters(exclude_categories=["Cs"])),
    index=st.integers(0, 10**6),
    name=st.text(st.characters(exclude_categories=["Cs"])),
    d=D,
    threshold=D,
    date=st.dates(),
    reason=st.text(st.characters(exclude_categories=["Cs"])),
    expires=st.none() | st.dates(),
)


def report(areas, name="net", weights="ab", layer="logits", names=None):
    areas = np.array(areas, dtype=float)
    names = names or tuple(map(str, range(len(areas))))
    scores = Scores(layer, "chinese", areas, areas * 0 + 0.01, 256, names)
    return ProbeReport(name, "photos", 256, 17, {(layer, "chinese"): scores}, weights=weights)


def record(index=0, d=0.97, **fields):
    given = {"model": "net", "weights": "ab", "layer": "logits", "script": "chinese"}
    given |= {"index": index, "name": str(index), "d": d, "threshold": 0.95, "date": TODAY}
    return KnownUnit(**{**given, **fields})


def failing(found, *known, **options):
    verdict = judge(found, 0.95, known=KnownUnits("k.toml", known, today=TODAY), **options)
    return [unit.index for unit in verdict.failing]


@given(st.lists(RECORDS, max_size=5, unique_by=lambda known: known.key))
def test_a_file_gives_back_what_was_written(tmp_path_factory, units):
    path = tmp_path_factory.mktemp("known") / "k.toml"
    write_known(path, units)
    assert read_known(path) == tuple(sorted(units, key=lambda known: known.key))
    text = path.read_bytes().decode()
    tomllib.loads(text)
    # One line for each unit, and no sign that could hide something from whoever reviews it.
    assert sum(line.startswith("    { ") for line in text.split("\n")) == len(units)
    assert all(c.isprintable() for c in text.replace("\n", ""))


def test_the_order_of_the_record_does_not_matter(tmp_path):
    units = [record(2), record(1, model="a"), record(1), record(10)]
    texts = []
    for order in (units, units[::-1]):
        write_known(tmp_path / "k.toml", order)
        texts.append((tmp_path / "k.toml").read_text("utf-8"))
    assert texts[0] == texts[1]


def test_a_unit_fails_unless_its_record_covers_it():
    found = report([0.97, 0.03, 0.5])
    assert failing(found) == [0, 1]
    assert failing(found, record(0)) == [1]
    assert failing(found, record(0), record(1)) == []


@pytest.mark.parametrize(
    "other",
    [
        {"model": "other"},
        {"weights": "cd"},
        {"layer": "features"},
        {"script": "latin"},
        {"name": "carton"},
        {"index": 1},
        {"d": 0.96},
        {"expires": datetime.date(2026, 4, 30)},
    ],
)
def test_a_record_covers_one_unit_of_one_model(other):
    assert failing(report([0.97]), record()) == []
    assert failing(report([0.97]), replace(record(), **other)) == [0]


def test_what_is_allowed_needs_no_record():
    known = KnownUnits("k.toml", (record(),))
    verdict = judge(report([0.97]), 0.95, {"logits:0": "harmless"}, known)
    assert [unit.index for unit, _ in verdict.allowed] == [0]
    assert verdict.known.passed == ()
    assert verdict.known.unneeded == (record(),)


def test_a_gate_that_does_not_ask_does_not_say_that_a_record_is_unneeded():
    known = KnownUnits("k.toml", (record(d=0.85, threshold=0.8),))
    assert judge(report([0.85]), 0.95, known=known).known.unneeded == ()
    assert judge(report([0.75]), 0.8, known=known).known.unneeded == known.units
    assert updated_units(known.units, [judge(report([0.85]), 0.95, known=known)]) == known.units


def test_two_models_of_one_name_keep_their_records_apart():
    known = KnownUnits("k.toml", (record(), record(weights="cd")))
    for weights in ("ab", "cd"):
        verdict = judge(report([0.97], weights=weights), 0.95, known=known)
        assert verdict.passed
        assert verdict.known.other_weights == ()
    assert judge(report([0.97], weights="ef"), 0.95, known=known).known.other_weights == known.units


def test_an_update_of_several_gates_keeps_the_worst_and_the_lowest_threshold():
    known = KnownUnits("k.toml", (), updating=True, today=TODAY)
    verdicts = [
        judge(report([0.97], name="net"), 0.95, known=known),
        judge(report([0.98], name="net"), 0.9, known=known),
    ]
    (found,) = updated_units(known.units, verdicts)
    assert (found.d, found.threshold, found.date) == (0.98, 0.9, TODAY)
    assert updated_units(known.units, verdicts[::-1]) == (found,)


def test_an_update_records_an_improvement():
    known = KnownUnits("k.toml", (record(d=0.99, reason="why"),), updating=True)
    (found,) = updated_units(known.units, [judge(report([0.96]), 0.95, known=known)])
    assert (found.d, found.reason) == (0.96, "why")


def test_names_that_no_file_can_hold_are_known_all_the_same(tmp_path):
    found = report([0.97], name="net\ud800", names=("\udfff",))
    known = KnownUnits("k.toml", (), updating=True)
    write_known(tmp_path / "k.toml", updated_units(known.units, [judge(found, 0.95, known=known)]))
    assert judge(found, 0.95, known=KnownUnits("k.toml", read_known(tmp_path / "k.toml"))).passed


def test_the_story_tells_what_is_known():
    known = KnownUnits(
        "k.toml",
        (
            record(0, reason="ticket\n12"),
            record(1, d=0.96, name="a\x1b[2Jb"),
            record(2, expires=datetime.date(2026, 4, 30)),
            record(3),
        ),
        today=TODAY,
    )
    names = ("0", "a\x1b[2Jb", "2", "3", "4")
    story = judge(report([0.97, 0.98, 0.97, 0.5, 0.99], names=names), 0.95, known=known).story()
    assert "3 of 5 logits react" in story
    told = story.splitlines()
    first = told.index(
        "known: logits unit 0, chinese, d 0.970 (recorded: 0.970 on 2026-05-01): ticket\\n12"
    )
    assert told[first + 1 : first + 4] == [
        "worse than known: logits a\\x1b[2Jb [1], chinese, d 0.980 (recorded: 0.960 on 2026-05-01)",
        "no longer known: logits unit 2, chinese, d 0.970 (recorded: 0.970 on 2026-05-01 until "
        "2026-04-30)",
        "no longer needed in k.toml: logits unit 3 (chinese)",
    ]


def test_a_long_record_does_not_flood_the_screen():
    units = tuple(record(i, d=0.99) for i in range(200))
    story = judge(report([0.98] * 100 + [0.5] * 100), 0.95, known=KnownUnits("k", units)).story()
    assert "known: ... and 90 more" in story
    assert "and 90 more" in story
    assert len(story.splitlines()) < 24
