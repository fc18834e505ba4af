from __future__ import annotations

import re
from datetime import date, timedelta

import pytest

FILE = "wm-known-units.toml"
MODEL = "--wm-model=shop:sensitive"
TEST = """
    import pytest_watermark_guard as wm
    from shop import blind, sensitive

    def test_sensitive():
        wm.assert_not_watermark_sensitive(sensitive(), class_names=["beach", "carton"])

    def test_blind():
        wm.assert_not_watermark_sensitive(blind())
"""


@pytest.fixture
def known(project):
    """A project whose sensitive model is on record; returns its file."""
    result = project.runpytest(MODEL, "--wm-update-known", "-pno:xdist")
    result.assert_outcomes(passed=4)
    return project.path / FILE


def edited(path, pattern, replacement):
    """Change a file as people would, by hand; says so if there is nothing to change."""
    text, count = re.subn(pattern, replacement, path.read_text("utf-8"))
    assert count
    path.write_text(text, encoding="utf-8")


def masked(text):
    text = re.sub(r'"([0-9a-f]{64}|[0-9a-f]{16})"', '"<digest>"', text)
    return re.sub(r"images = \d+", "images = <n>", text).replace(str(date.today()), "<today>")


RECORD = """\
# Units that react to watermarks and are known to, recorded by pytest --wm-update-known for the
# gates of pytest-watermark-guard. Units that are not listed fail, and so do those whose d exceeds
# what is written here by more than 0.005, or by more than chance explains where seed, images or
# precision are others now. Review a change of this file as you review code.
#
# By hand you may add to a unit: reason = "why it may stay" and expires = 2030-12-31, the last day
# on which it may. An update keeps both, and no comments.
format_version = 2

[[model]]
name = "shop:sensitive"
weights = "<digest>"
all_weights = "<digest>"
seed = 17
images = <n>
images_digest = "<digest>"
precision = "float32"
units = [
    { layer = "features", script = "chinese", index = 2, name = "2", d = 1.0000, \
error = 0.0000, threshold = 0.95, date = <today> },
    { layer = "features", script = "latin", index = 2, name = "2", d = 1.0000, \
error = 0.0000, threshold = 0.95, date = <today> },
    { layer = "logits", script = "chinese", index = 1, name = "1", d = 1.0000, \
error = 0.0000, threshold = 0.95, date = <today> },
    { layer = "logits", script = "latin", index = 1, name = "1", d = 1.0000, \
error = 0.0000, threshold = 0.95, date = <today> },
]
"""


def test_what_is_recorded_passes_afterwards(project, distribution):
    result = project.runpytest(MODEL, "--wm-update-known", *distribution)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"watermark guard: wrote {FILE}: 4 known; review the change"])
    path = project.path / FILE
    assert masked(path.read_text("utf-8")) == RECORD
    before = path.read_bytes()
    result = project.runpytest(MODEL, *distribution)
    result.assert_outcomes(passed=4)
    # Nothing is let pass in silence, though nobody asked for a report.
    result.stdout.fnmatch_lines(
        [
            "watermark guard: known in shop:sensitive, let pass: "
            "logits unit 1 (chinese, latin), features unit 2 (chinese, latin)"
        ]
    )
    result.stdout.no_fnmatch_line("*of the units in*")
    assert path.read_bytes() == before


def test_in_tests_as_well(project, distribution):
    project.makepyfile(TEST)
    project.runpytest("--wm-update-known", *distribution).assert_outcomes(passed=2)
    text = (project.path / FILE).read_text("utf-8")
    assert 'name = "Sensitive"' in text
    assert 'index = 1, name = "carton"' in text
    assert "Blind" not in text
    project.runpytest(*distribution).assert_outcomes(passed=2)
    project.runpytest("--wm-no-known", *distribution).assert_outcomes(passed=1, failed=1)


def test_the_report_tells_each_unit(project, known):
    edited(known, r"(script = \"latin\".*?) }", r'\1, reason = "ticket 12" }')
    result = project.runpytest(MODEL, "--wm-report")
    result.stdout.fnmatch_lines(
        [
            "Note: all images were used, for the known units in wm-known-units.toml.",
            "Gate passed: nothing else reaches 0.95; strongest: *",
            f"known: logits unit 1, latin, d 1.000 (recorded: 1.000 on {date.today()}): ticket 12",
        ]
    )


def test_a_new_unit_fails(project, known):
    edited(known, r'    { layer = "logits", script = "latin".*\n', "")
    result = project.runpytest(MODEL)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*1 of 2 logits reacts to latin marks (d >= 0.95)."])


@pytest.mark.parametrize(("d", "outcome"), [("0.9940", "failed"), ("0.9960", "passed")])
def test_a_unit_that_is_worse_by_more_than_the_margin_fails(project, known, d, outcome):
    edited(known, r"(\"logits\", script = \"latin\".*)d = 1.0000", rf"\g<1>d = {d}")
    result = project.runpytest(MODEL)
    result.assert_outcomes(**{"passed": 3, outcome: 1 + 3 * (outcome == "passed")})
    told = "*worse than known: logits unit 1, latin, d 1.000 (recorded: 0.994 on *)"
    summed_up = f"watermark guard: of the units in {FILE}: 1 worse"
    if outcome == "failed":
        result.stdout.fnmatch_lines([told, summed_up])
    else:
        result.stdout.no_fnmatch_line(told)
        result.stdout.no_fnmatch_line(summed_up)


@pytest.mark.parametrize(("days", "outcome"), [(-1, "failed"), (0, "passed")])
def test_a_unit_may_stay_through_its_last_day(project, known, days, outcome):
    day = date.today() + timedelta(days)
    edited(known, r"(\"logits\", script = \"latin\".*?) }", rf"\1, expires = {day} }}")
    result = project.runpytest(MODEL)
    result.assert_outcomes(**{"passed": 3, outcome: 1 + 3 * (outcome == "passed")})
    if outcome == "failed":
        result.stdout.fnmatch_lines(
            [
                f"no longer known: logits unit 1, latin, d 1.000 (recorded: * until {day})",
                f"watermark guard: of the units in {FILE}: 1 expired",
            ]
        )


def test_units_that_nothing_needs_any_more_are_told(project, known):
    entry = '{ layer = "logits", script = "latin", index = 0, name = "0", d = 1, '
    entry += "error = 0, threshold = 0.95"
    edited(known, r"units = \[", f"units = [\n    {entry}, date = 2020-01-01 }},")
    result = project.runpytest(MODEL, "--wm-report")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            f"no longer needed in {FILE}: logits unit 0 (latin)",
            f"watermark guard: of the units in {FILE}: 1 no longer needed",
        ]
    )


def test_other_weights_are_another_model(project, known):
    edited(known, r'weights = "\w{8}', 'weights = "01234567')
    result = project.runpytest(MODEL)
    result.assert_outcomes(failed=4)
    result.stdout.fnmatch_lines(
        [
            f"not applied: {FILE} knows 1 unit of this model with other weights; review*",
            f"watermark guard: of the units in {FILE}: 4 for other weights",
        ]
    )
    project.runpytest(MODEL, "--wm-update-known").assert_outcomes(passed=4)
    assert masked(known.read_text("utf-8")) == RECORD
    assert "01234567" not in known.read_text("utf-8")


def test_an_update_keeps_what_people_wrote_and_what_was_not_asked(project, known):
    edited(
        known,
        r"(\"logits\", script = \"latin\".*?date = )[-\d]+ }",
        r'\g<1>2020-01-01, reason = "known bug" }',
    )
    edited(
        known,
        r"\Z",
        '\n[[model]]\nname = "other"\nweights = "ab"\nunits = [\n    '
        '{ layer = "logits", script = "latin", index = 7, name = "dog", d = 0.9700, '
        "threshold = 0.95, date = 2020-01-01 },\n]\n",
    )
    edited(
        known,
        r"(\"features\", script = \"latin\".*)d = 1.0000(.*date = )[-\d]+",
        r"\g<1>d = 0.9600\g<2>2020-01-01",
    )
    before = known.read_text("utf-8")
    result = project.runpytest(MODEL, "--wm-update-known", "--wm-scenarios=latin")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*1 of models that were not gated"])
    after = known.read_text("utf-8")
    # The reason and its date stay, as do the other model and the scenario that nobody probed; of
    # what is news, the date is today's.
    changed = {*after.splitlines()} ^ {*before.splitlines()}
    assert len(changed) == 2
    assert any("d = 1.0000" in line and str(date.today()) in line for line in changed)
    assert 'name = "other"' in after


def test_an_update_does_not_prolong(project, known):
    edited(known, r"(\"logits\", script = \"latin\".*?) }", r"\1, expires = 2020-01-01 }")
    before = known.read_text("utf-8")
    project.runpytest(MODEL, "--wm-update-known").assert_outcomes(passed=3, failed=1)
    assert known.read_text("utf-8") == before


def test_an_update_forgets_what_is_not_needed(project, known):
    edited(known, r'name = "shop:sensitive"', 'name = "shop:blind"')
    project.runpytest("--wm-model=shop:blind", "--wm-update-known").assert_outcomes(passed=4)
    assert "[[model]]" not in known.read_text("utf-8")
    project.runpytest("--wm-model=shop:blind").assert_outcomes(passed=4)


def test_allowed_units_need_no_record(project):
    allowed = "--wm-allow=logits:1=ticket 12"
    project.runpytest(MODEL, allowed, "--wm-update-known").assert_outcomes(passed=4)
    assert "logits" not in (project.path / FILE).read_text("utf-8")
    project.runpytest(MODEL, allowed).assert_outcomes(passed=4)
    project.runpytest(MODEL).assert_outcomes(passed=2, failed=2)


def test_an_update_without_gates_changes_nothing(project, known):
    before = known.read_bytes()
    path = project.makepyfile("def test_nothing(): pass")
    result = project.runpytest(path, "--wm-update-known")
    result.stdout.fnmatch_lines([f"watermark guard: no gate was made, so {FILE} is as it was"])
    assert known.read_bytes() == before


def test_gates_stop_early_where_nothing_is_known(project, known):
    project.makepyfile(
        """
        import pytest_watermark_guard as wm
        from shop import blind, sensitive

        def test_it():
            other = blind()
            other.fc.weight.data *= 2
            assert wm.probe(other, name="blind", stop_at=0.95).early_stop is not None
            assert wm.probe(blind(), name="the same weights", stop_at=0.95).early_stop is None
            assert wm.probe(blind(), name="shop:sensitive", stop_at=0.95).early_stop is None
        """
    )
    project.runpytest().assert_outcomes(passed=1)


def test_a_file_by_another_name(project, known):
    known.rename(project.path / "mine.toml")
    project.runpytest(MODEL).assert_outcomes(failed=4)
    project.runpytest(MODEL, "--wm-known=mine.toml").assert_outcomes(passed=4)
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_known = mine.toml\n")
    project.runpytest(MODEL).assert_outcomes(passed=4)


UNIT = (
    '{ layer = "l", script = "s", index = 1, name = "n", d = 0.99, threshold = 0.95, '
    "date = 2020-01-01 }"
)
HEAD = 'format_version = 1\n[[model]]\nname = "m"\nweights = "w"\n'
DAMAGED = {
    "not TOML": ("<<<<<<< HEAD\n", "is not TOML"),
    "not text": (b"\xff\xfe\x00", "is not TOML"),
    "deep": ("a = " + "[" * 100_000, "is not TOML"),
    "huge": (f"format_version = {'9' * 10_000}", "is not TOML"),
    "no version": ('[[model]]\nname = "m"\n', "has no 'format_version'"),
    "newer": ("format_version = 3\n", "its format_version is 3"),
    "a typo": (HEAD + f"units = [{UNIT[:-1]}, reson = 'x' }}]", "unknown 'reson'"),
    "no date": (HEAD + f"units = [{UNIT.replace(', date = 2020-01-01', '')}]", "no 'date'"),
    "text": (HEAD + f"units = [{UNIT.replace('2020-01-01', repr('soon'))}]", "date must be"),
    "a time": (HEAD + f"units = [{UNIT.replace('-01 }', '-01T00:00:00 }')}]", "date must be"),
    "nan": (HEAD + f"units = [{UNIT.replace('0.99', 'nan')}]", "d must be a number in (0.5, 1]"),
    "a large d": (HEAD + f"units = [{UNIT.replace('0.99', '99.0')}]", "d must be"),
    "a negative index": (HEAD + f"units = [{UNIT.replace('= 1', '= -1')}]", "index must be"),
    "units of no kind": (HEAD + "units = 3", "model 1: units must be a list of tables"),
    "twice": (HEAD + f"units = [{UNIT}, {UNIT}]", "listed twice"),
    "evil": (HEAD + 'units = [{ "\\u001b[2J\\nPASSED" = 1 }]', "has no"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_usage_error(project, case):
    content, message = DAMAGED[case]
    content = content if isinstance(content, bytes) else content.encode()
    (project.path / FILE).write_bytes(content)
    result = project.runpytest("--wm-model=shop:blind")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (line,) = (line for line in result.errlines if line)
    assert line.startswith("ERROR: watermark guard: ")
    assert FILE in line
    assert message in line


def test_a_file_that_is_ignored_may_be_damaged(project):
    (project.path / FILE).write_text("<<<<<<< HEAD\n")
    project.runpytest("--wm-model=shop:blind", "--wm-no-known").assert_outcomes(passed=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--wm-known=missing.toml"], "*there is no *missing.toml*--wm-update-known makes it"),
        (["--wm-update-known", "--wm-no-known"], "*exclude each other"),
        (["--wm-update-known", "--wm-known=no/folder.toml"], "*cannot write *folder.toml*"),
        (["--wm-known=."], "*cannot read *"),
    ],
)
def test_wrong_options_are_usage_errors(project, options, message):
    result = project.runpytest("--wm-model=shop:blind", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: watermark guard: {message}"])


def test_a_file_that_cannot_be_written_fails_the_run(project):
    (project.path / "conftest.py").write_text(
        "from pathlib import Path\n\n"
        "def pytest_collection_finish():\n"
        f"    Path({FILE!r}).unlink(missing_ok=True)\n"
        f"    Path({FILE!r}).mkdir()\n"
    )
    result = project.runpytest("--wm-model=shop:sensitive", "--wm-update-known")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"watermark guard: could not write {FILE}: *"])
