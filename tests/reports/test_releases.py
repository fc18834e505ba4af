"""Two releases side by side; golden text as in `test_terminal`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

import pytest_watermark_guard as wm
from pytest_watermark_guard import ProbeReport, Scores
from pytest_watermark_guard.errors import ReportError, SettingsError
from pytest_watermark_guard.reports.json_file import write_json
from pytest_watermark_guard.reports.releases import EarlierRelease

GOLDEN = Path(__file__).parent / "golden" / "releases.txt"
CLASSES = ("beach", "carton", "German short-haired pointer", "safe")
MIRRORED = {"rose": "fell", "fell": "rose", "turned": "turned"}


def scores(areas, layer="logits", scenario="chinese", names=None, error=0.01, images=500):
    areas = np.array(areas, dtype=float)
    names = names or tuple(map(str, range(len(areas))))
    return Scores(layer, scenario, areas, areas * 0 + error, images, names)


def report(*found, **fields):
    given = {
        "model": "net",
        "baseline": "500 images of photos",
        "n_images": 500,
        "seed": 17,
        "preprocessing": "ImageNet's",
        "precision": "float32",
        "weights": "ab",
        "images_digest": "f00",
    }
    given |= fields
    places = {(one.layer, one.scenario): replace(one, n_images=given["n_images"]) for one in found}
    return ProbeReport(scores=places, **given)


AREAS = arrays(float, 6, elements=st.floats(0, 1))
ERRORS = arrays(float, 6, elements=st.floats(0, 0.05) | st.just(np.nan))
SCORES = st.builds(lambda a, e: report(scores(a, error=e)), AREAS, ERRORS)


@given(SCORES)
def test_a_report_compared_with_itself_has_no_changes(found):
    same = wm.compare(found, found)
    assert same.changes == same.cautions == ()
    assert all(not (place.crossed_up or place.crossed_down) for place in same.places)


@given(SCORES, SCORES)
def test_swapping_mirrors(one, other):
    there, back = wm.compare(one, other, threshold=0.8), wm.compare(other, one, threshold=0.8)
    assert {(u.index, u.change, u.before, u.after, u.p_value) for u in there.changes} == {
        (u.index, MIRRORED[u.change], u.after, u.before, u.p_value) for u in back.changes
    }
    (up,), (down,) = there.places, back.places
    assert {u.index for u in up.crossed_up} == {u.index for u in down.crossed_down}
    assert (up.before, up.after) == (down.after, down.before)


@given(AREAS, AREAS)
def test_what_is_named_moved_and_is_told_by_d(then, now):
    for unit in wm.compare(report(scores(then)), report(scores(now))).changes:
        # Beyond 0.05 of two errors of 0.01 at the very least, however many units there are.
        assert abs(unit.after - unit.before) > 1.96 * 0.01 * 2**0.5
        assert unit.change != "rose" or unit.d_after > unit.d_before
        assert unit.change != "fell" or unit.d_after < unit.d_before
        assert unit.change != "turned" or (unit.before - 0.5) * (unit.after - 0.5) < 0


def test_changes_are_named_by_what_d_did():
    then = report(scores([0.60, 0.90, 0.50, 0.90, 0.80, 0.10]))
    now = report(scores([0.90, 0.60, 0.51, 0.10, 0.04, 0.90], names=(*"abcdef",)))
    found = wm.compare(then, now)
    assert {unit.label: unit.change for unit in found.changes} == {
        "a [0]": "rose",
        "b [1]": "fell",
        "d [3]": "turned",
        "e [4]": "rose",
        "f [5]": "turned",
    }
    assert [unit.index for unit in found.rose] == [0, 4]


def test_more_units_need_larger_changes():
    def changed(units):
        then = report(scores([0.5] * units))
        now = report(scores([0.5] * (units - 1) + [0.55]))
        return wm.compare(then, now).changes

    assert len(changed(10)) == 1  # 3.5 standard errors
    assert changed(1000) == ()


FEATURES = np.linspace(0.02, 0.90, 512)
RETRAINED = np.where(np.arange(512) % 100 == 37, 0.97, FEATURES)
OLD = report(
    scores([0.50, 0.97, 0.71, 0.20], names=CLASSES),
    scores(FEATURES, "features"),
    scores([0.50, 0.52, 0.55, 0.49], scenario="hindi", names=CLASSES),
    scores([0.50, 0.52, 0.55, 0.49], "aux", names=CLASSES),
    scores([0.6, 0.7], "neck"),
    scores([0.6, 0.7], "neck", "latin"),
    model="shop.models:v1",
)
NEW = report(
    scores([0.50, 0.71, 0.96, 0.81], names=CLASSES),
    scores(RETRAINED, "features"),
    scores([0.50, 0.52, 0.55, 0.49], "aux", names=(*CLASSES[:3], "vault")),
    scores([0.6, 0.7, 0.8], "neck"),
    scores([0.6, 0.7, 0.8], "neck", "latin"),
    scores([0.50, 0.52], "logits[shape]"),
    model="shop.models:v2",
    seed=18,
    n_images=400,
    baseline="400 of 500 images of photos",
    images_digest="b00",
    precision="bfloat16, channels last",
    preprocessing="ImageNet's, 192 px",
    weights="cd",
)


def test_golden(update_golden):
    text = wm.compare(OLD, NEW).table(80)
    assert all(len(line) <= 80 for line in text.splitlines())
    if update_golden:
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text("utf-8")


def test_what_is_not_compared_is_said():
    told = wm.compare(OLD, NEW).cautions
    assert told == (
        "not compared: aux under chinese (1 of 4 units had other names, as 'safe' for 'vault')",
        "not compared: neck under chinese and latin (2 units before, 3 after)",
        "not compared: logits[shape] under chinese (not probed before)",
        "not compared: logits under hindi (not probed after)",
        "other images: 500 images of photos before, 400 images drawn from the 500 images of "
        "photos after",
        "other seed: 17 before, 18 after",
        "other precision: float32 before, bfloat16 after",
        "other preprocessing: ImageNet's before, ImageNet's, 192 px after",
        "units of features are compared by their number, which means something only where one "
        "model was trained on from the other",
    )


def test_nothing_in_common_is_an_error():
    with pytest.raises(ReportError, match=r"nothing to compare.*features under latin"):
        wm.compare(report(scores([0.5])), report(scores([0.5], "features", "latin")))


def test_largest_d_is_told_even_where_units_are_others():
    found = wm.compare(report(scores([0.6, 0.7])), report(scores([0.9])))
    assert (
        found.sentence()
        == "net against net: no unit could be compared; largest d 0.900, was 0.700."
    )


def test_the_sentence():
    found = wm.compare(report(scores([0.6, 0.9])), report(scores([0.97, 0.6]), model="v\x1b2"))
    assert found.sentence() == (
        "v\\x1b2 against net: of its units 1 rose and 1 fell beyond chance; largest d 0.970, was "
        "0.900; 1 unit crossed 0.95 upwards."
    )


def test_one_image_shows_no_change():
    one = report(scores([0.0], error=np.nan, images=1), n_images=1)
    found = wm.compare(one, report(scores([1.0], error=np.nan, images=1), n_images=1))
    assert found.changes == ()
    assert "one image before: nothing tells what is beyond chance" in found.cautions


def test_files_of_either_kind(tmp_path):
    old, new = replace(OLD, model="net"), replace(NEW, model="net")
    other = report(scores([0.5]), model="other")
    write_json(tmp_path / "run.json", [(other, []), (old, [])], 0.95)
    new.save(tmp_path / "new.json")
    expected = wm.compare(old, new).to_dict()
    for before, after in [("run.json", new), ("run.json", "new.json")]:
        path = after if isinstance(after, ProbeReport) else tmp_path / after
        assert wm.compare(tmp_path / before, path).to_dict() == expected
    mirrored = wm.compare(tmp_path / "new.json", tmp_path / "run.json")
    assert mirrored.sentence() == wm.compare(new, old).sentence()
    assert wm.compare(tmp_path / "run.json", tmp_path / "run.json", model="net").changes == ()


def test_a_comparison_is_saved_as_it_is(tmp_path):
    found = wm.compare(OLD, NEW)
    found.save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == json.loads(
        json.dumps(found.to_dict())
    )


def test_of_several_probes_the_one_that_was_made_alike(tmp_path):
    one = report(scores([0.5, 0.6], scenario="latin"))
    two = report(scores([0.5, 0.7]))
    release = EarlierRelease("v1.json", (one, two))
    assert release.compared(report(scores([0.5, 0.7])), 0.95).before is two
    told = EarlierRelease("v1.json", (two, two)).told(two, 0.95)
    assert told.startswith("net is compared with nothing: v1.json: it holds 2 probes of 'net'")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("{", "JSONDecodeError"),
        ("[]", "it is no JSON object"),
        ('{"format": "pytest-watermark-guard/survey"}', "it is of format"),
        ('{"format": "pytest-watermark-guard/run", "format_version": 9}', "upgrade"),
        ('{"format": "pytest-watermark-guard/run", "format_version": 1}', "'reports'"),
        (
            '{"format": "pytest-watermark-guard/run", "format_version": 1, "reports": []}',
            "nothing was probed",
        ),
    ],
)
def test_files_that_hold_no_release(tmp_path, content, message):
    path = tmp_path / "v1.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        wm.compare(path, OLD)
    assert "v1.json" in str(caught.value)


def test_a_file_of_several_models_needs_a_name(tmp_path):
    write_json(tmp_path / "run.json", [(OLD, []), (NEW, [])], 0.95)
    with pytest.raises(ReportError, match=r"run\.json.*v1.*v2.*say which by model="):
        wm.compare(tmp_path / "run.json", tmp_path / "run.json")
    with pytest.raises(ReportError, match="none is of 'net'"):
        wm.compare(tmp_path / "run.json", report(scores([0.5])))


def test_a_wrong_threshold_is_said():
    with pytest.raises(SettingsError):
        wm.compare(OLD, NEW, threshold=95)
