"""Known units, from the record to the verdict, without a run of pytest."""

from __future__ import annotations

import datetime
import sys
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
from hypothesis import given, strategies as st

from pytest_watermark_guard import ProbeReport, Scores, judge
from pytest_watermark_guard.errors import KnownUnitsError
from pytest_watermark_guard.plugin.known_units_file import read_known, updated_units, write_known
from pytest_watermark_guard.reports.known_units import KnownUnit, KnownUnits, ProbeSetting
from pytest_watermark_guard.reports.known_units_text import known_summary

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEY = attrgetter("key")
TODAY = datetime.date(2026, 5, 1)
D = st.integers(5001, 10_000).map(lambda n: n / 10_000)
SETTINGS = st.builds(
    ProbeSetting,
    st.integers(0, 99),
    st.integers(1, 10**6),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["float32", "bfloat16"]),
)
ERRORS = st.integers(0, 5000).map(lambda n: n / 10_000) | st.just(float("inf"))
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
    all_weights=st.text("0123456789abcdef"),
)
RECORDS = RECORDS | st.builds(
    lambda k, s, e: replace(k, setting=s, error=e), RECORDS, SETTINGS, ERRORS
)


def report(areas, name="net", weights="ab", layer="logits", names=None, error=0.01, **fields):
    areas = np.array(areas, dtype=float)
    names = names or tuple(map(str, range(len(areas))))
    scores = {(layer, "chinese"): Scores(layer, "chinese", areas, areas * 0 + error, 256, names)}
    given = {"n_images": 256, "seed": 17, "images_digest": "f00", "precision": "float32"}
    return ProbeReport(name, "photos", scores=scores, weights=weights, **{**given, **fields})


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
    assert sorted(read_known(path), key=KEY) == sorted(units, key=KEY)
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


HERE = ProbeSetting(17, 256, "f00", "float32")
OTHERS = {
    "seed 18, now seed 17": replace(HERE, seed=18),
    "998 images, now 256 images": replace(HERE, images=998, images_digest="a"),
    "256 images, now 256 other images": replace(HERE, images_digest="a"),
    "bfloat16, now float32": replace(HERE, precision="bfloat16"),
    "seed 1 and 998 images, now seed 17 and 256 images": ProbeSetting(1, 998, "a", "float32"),
}


@pytest.mark.parametrize("setting", [HERE, None])
def test_under_the_same_setting_d_stays_within_the_margin(setting):
    known = record(setting=setting, error=0.01)
    assert failing(report([0.9749]), known) == []
    assert failing(report([0.9751]), known) == [0]


@pytest.mark.parametrize("words", OTHERS)
def test_under_another_setting_chance_is_allowed_for(words):
    known = record(setting=OTHERS[words], error=0.005)
    margin = 2.33 * (0.005**2 + 0.01**2) ** 0.5  # one-sided, of a hundred units one
    verdicts = [
        judge(report([d]), 0.9, known=KnownUnits("k.toml", (replace(known, d=0.95),)))
        for d in (0.95 + margin - 1e-4, 0.95 + margin + 1e-4)
    ]
    assert [len(verdict.failing) for verdict in verdicts] == [0, 1]
    for verdict, word in zip(verdicts, ("known", "worse than known"), strict=True):
        (line,) = verdict.accepted_lines()
        assert line.startswith(f"{word}: logits unit 0, chinese, ")
        assert line.endswith(f"(recorded: 0.950 on 2026-05-01 with {words})")


def test_images_that_have_no_digest_are_not_known_to_be_the_same():
    unknown = replace(HERE, images_digest="")
    known = KnownUnits("k.toml", (record(setting=unknown, error=0.01),))
    verdict = judge(report([0.98], images_digest=""), 0.95, known=known)
    assert verdict.failing == ()
    assert "which may be others now" in next(verdict.accepted_lines())


def test_without_an_error_chance_explains_everything():
    found = report([0.999], error=np.nan, seed=18)
    assert failing(found, record(d=0.96, setting=HERE, error=0.01)) == []


def test_how_it_was_made_fast_is_no_other_setting():
    found = report([0.98], precision="float32, batch norm folded, channels last")
    assert failing(found, record(setting=HERE, error=0.01)) == [0]


@given(D, st.floats(0, 0.1), st.floats(0, 0.1))
def test_another_setting_never_allows_less_than_the_same(d, then, now):
    known = record(d=d, setting=HERE, error=then)
    assert known.margin(replace(HERE, seed=1), now) >= known.margin(HERE, now) == 0.005


def test_an_update_records_the_setting_and_holds_on_to_what_it_recorded():
    updating = KnownUnits("k.toml", (), updating=True, today=TODAY)
    found = report([0.97], all_weights="77")
    units = updated_units((), [judge(found, 0.95, known=updating)])
    assert units == (record(setting=HERE, error=0.01, all_weights="77"),)
    later = datetime.date(2026, 6, 1)
    again = replace(updating, units=units, today=later)
    assert (
        updated_units(units, [judge(report([0.974], all_weights="77"), 0.95, known=again)]) == units
    )
    other = report([0.974], all_weights="77", seed=18)
    (moved,) = updated_units(units, [judge(other, 0.95, known=again)])
    assert (moved.d, moved.date, moved.setting.seed) == (0.974, later, 18)


def test_an_update_adds_the_setting_to_what_has_none():
    known = KnownUnits("k.toml", (record(reason="why"),), updating=True)
    (found,) = updated_units(known.units, [judge(report([0.97]), 0.95, known=known)])
    assert (found.setting, found.error, found.reason) == (HERE, 0.01, "why")


def test_a_record_without_a_setting_is_told_once():
    known = KnownUnits("k.toml", (record(0), record(1), record(2, setting=HERE, error=0.01)))
    findings = judge(report([0.97] * 3), 0.95, known=known).known
    lines = [line for line in known_summary([("net", findings)] * 2, {}) if "without" in line]
    assert lines == [
        "2 units in k.toml recorded without seed, images and precision: whatever these are now, d "
        "may exceed the record by 0.005, as if they were the same; --wm-update-known adds them"
    ]


def test_a_unit_below_the_threshold_by_chance_still_needs_its_record():
    then = replace(HERE, seed=1)
    for d, setting, needed in [(0.94, then, True), (0.90, then, False), (0.94, HERE, False)]:
        known = KnownUnits("k.toml", (record(setting=setting, error=0.01),))
        verdict = judge(report([d]), 0.95, known=known)
        assert verdict.known.unneeded == (() if needed else known.units)
        assert updated_units(known.units, [verdict]) == (known.units if needed else ())


def test_the_same_weights_are_known_by_another_name(tmp_path):
    old = record(model="old.pt", all_weights="77", reason="why")
    write_known(tmp_path / "k.toml", [old])
    known = KnownUnits("k.toml", read_known(tmp_path / "k.toml"), today=TODAY)
    found = report([0.97, 0.98], name="new.pt", all_weights="77")
    assert known.concerns("new.pt", "77")
    verdict = judge(found, 0.95, known=known)
    assert [unit.index for unit in verdict.failing] == [1]
    (line,) = verdict.accepted_lines()
    assert "(recorded: 0.970 on 2026-05-01 as 'old.pt', the same weights): why" in line
    told, *_ = known_summary([("new.pt", verdict.known)], known.elsewhere([found]))
    assert told.endswith("logits unit 0 (chinese) (recorded as 'old.pt', the same weights)")
    # Another head on the same backbone is another model.
    other = report([0.97], name="new.pt", all_weights="78")
    assert not known.concerns("new.pt", "78")
    assert [unit.index for unit in judge(other, 0.95, known=known).failing] == [0]


def test_an_update_records_the_same_weights_by_their_new_name():
    old = record(model="old.pt", all_weights="77", reason="why")
    kept = record(1, model="old.pt", all_weights="78")
    known = KnownUnits("k.toml", (old, kept), updating=True, today=TODAY)
    verdict = judge(report([0.97], name="new.pt", all_weights="77"), 0.95, known=known)
    new = replace(old, model="new.pt", setting=HERE, error=0.01)
    assert updated_units(known.units, [verdict]) == (new, kept)


def test_files_of_the_first_format_are_read(tmp_path):
    path = tmp_path / "k.toml"
    path.write_text(
        'format_version = 1\n[[model]]\nname = "net"\nweights = "ab"\nunits = [\n'
        '    { layer = "logits", script = "chinese", index = 0, name = "0", d = 0.9700, '
        "threshold = 0.95, date = 2026-05-01 },\n]\n"
    )
    assert read_known(path) == (record(),)


def test_half_a_setting_is_an_error(tmp_path):
    path = tmp_path / "k.toml"
    write_known(path, [record(setting=HERE, error=0.01)])
    for line in ("seed = 17", 'images_digest = "f00"', "error = 0.0100, "):
        text = path.read_text("utf-8")
        path.write_text(text.replace(line, ""), encoding="utf-8")
        with pytest.raises(KnownUnitsError, match=f"has no '{line.split()[0]}'"):
            read_known(path)
        path.write_text(text, encoding="utf-8")
