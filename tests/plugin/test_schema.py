"""The published JSON Schemas against what is really written."""

from __future__ import annotations

import copy
import json
from importlib.resources import files

import pytest

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

SCHEMAS = {
    name: json.loads((files("pytest_watermark_guard") / f"schema/{name}.schema.json").read_text())
    for name in ("report", "run")
}
TEST = """
    import numpy as np
    import pytest
    import pytest_watermark_guard as wm
    from torch import nn
    from shop import blind, sensitive

    @pytest.fixture
    def backbone():
        return sensitive()

    def test_gates():
        wm.assert_not_watermark_sensitive(blind(), early_stop=0.01)
        allow = {"logits:1": "known", "features:0": "old"}
        wm.assert_not_watermark_sensitive(sensitive(), allow=allow, layers="logits")
        wm.assert_not_watermark_sensitive(blind(), max_flips=0.9, max_drop=90, labels=[0, 1] * 32)
        wm.assert_not_watermark_sensitive(sensitive(), name="new")

    def test_probe():
        report = wm.probe(sensitive(), control=True, labels=[0, 1] * 32, examples=True)
        report.save("report.json")

    def test_each():
        model = blind()
        model.fc.weight.data.mul_(2)  # other weights than those with units on record
        wm.probe(model, stop_at=0.95, decide_each=True)

    def test_owned():
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        net.preprocessing = wm.Preprocessing(size=(8, 8))
        photos = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        key = wm.ownership.generate_key(net, photos, pairs=2, steps=0).commit("a beacon")
        key = key.draw_coins("0123456789abcdef", published="here")
        wm.ownership.verify(net, key, photos, {"twin": net})

    @pytest.mark.wm_mask(fraction=0.4)
    def test_masked(backbone, wm_mask):
        pass

    @pytest.mark.wm_mask(method="erase")
    def test_erased(backbone, wm_mask):
        pass

    def test_unchecked():
        wm.probe(blind(), layers=("nosuch",))
"""


@pytest.fixture
def written(project):
    """Both files of a run that has something of everything in it."""
    project.makepyfile(TEST)
    project.runpytest("--wm-update-known")
    path = project.path / "wm-known-units.toml"
    text = path.read_text("utf-8").replace('name = "Sensitive"', 'name = "other"', 1)
    lines = text.replace("d = 1.0000", "d = 0.9600", 1).replace(" },", ", expires = 2020-01-01 },")
    path.write_text(lines, encoding="utf-8")
    project.runpytest("--wm-json=run.json", "--wm-threshold=0.9")
    _compare(project)
    return {
        name: json.loads((project.path / f"{name}.json").read_text("utf-8")) for name in SCHEMAS
    }


def _compare(project):
    """Write a second run, after a release that reacted less, and had other units."""
    run = json.loads((project.path / "run.json").read_text("utf-8"))
    earlier = next(r for r in run["reports"] if {"logits", "features"} == r["names"].keys())
    earlier |= {"model": "Sensitive", "n_images": 500, "names": {"logits": ["0", "1"]}}
    scores = [entry for entry in earlier["scores"] if entry["layer"] == "logits"]
    earlier["scores"] = [entry | {"auroc": [0.0, 0.0]} for entry in scores]
    earlier |= {"controls": [], "controls_alone": []}
    (project.path / "v1.json").write_text(json.dumps({**run, "reports": [earlier]}))
    project.makepyfile(TEST.partition("def test_probe")[0])
    options = "--wm-no-worse", "--wm-threshold=0.9", "--wm-no-known", "-Wignore"
    project.runpytest("--wm-json=second.json", "--wm-against=v1.json", *options)


def problems(name, data):
    checker = jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.FormatChecker()
    )
    return [
        f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in checker.iter_errors(data)
    ]


def field_names(data, free=("names", "impact", "geometry", "marks", "versions", "failures")):
    if isinstance(data, list):
        return {name for entry in data for name in field_names(entry)}
    if not isinstance(data, dict):
        return set()
    found = set(data)
    for name, value in data.items():
        inner = value.values() if name == "impact" else () if name in free else (value,)
        found |= {deeper for entry in inner for deeper in field_names(entry)}
    return found


def described(schema):
    if isinstance(schema, list):
        return {name for entry in schema for name in described(entry)}
    if not isinstance(schema, dict):
        return set()
    found = {name for entry in schema.values() for name in described(entry)}
    return found | set(schema["properties"] if isinstance(schema.get("properties"), dict) else ())


def test_what_is_written_is_what_is_published(written, project):
    second = json.loads((project.path / "second.json").read_text("utf-8"))
    for name, data in [*written.items(), ("run", second)]:
        assert problems(name, data) == []
        assert field_names(data) - described(SCHEMAS[name]) == set()
    # The files have what the schemas describe: nothing is checked by being absent.
    assert described(SCHEMAS["run"]) - field_names([written["run"], second]) == set()
    report = written["report"]
    assert written["run"]["failures"]
    assert any((r["early_stop"] or {}).get("each") for r in written["run"]["reports"])
    assert report["controls"]
    assert {entry["control"] for entry in report["controls_alone"]} == {"strokes", "blobs"}
    assert report["impact"]["chinese"]["top1_baseline"] is not None


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schemas_are_schemas(name):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_one_file_is_enough_for_a_run():
    assert SCHEMAS["run"]["$defs"]["report"] == SCHEMAS["report"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "pytest-watermark-guard/run"),
        (["format_version"], 2),
        (["n_images"], 0),
        (["scores"], []),
        (["scores", 0, "auroc", 0], 1.5),
        (["notes"], "a note"),
        (["impact", "chinese", "flip_rate"], None),
        (["examples", "units", 0, "index"], "first"),
    ],
)
def test_the_schema_tells_what_is_wrong(written, path, value):
    wrong = copy.deepcopy(written["report"])
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (problem,) = problems("report", wrong)
    assert problem.startswith(str(path[0]))
    run = {**written["run"], "reports": [{**written["run"]["reports"][0], path[0]: wrong[path[0]]}]}
    assert problems("run", run)


def test_versions_of_both_formats_are_those_of_the_schemas():
    from pytest_watermark_guard.reports import probe, release_file

    for name, written_as in (("report", probe.FORMAT), ("run", release_file.RUN)):
        stated = SCHEMAS[name]["properties"]
        assert stated["format"]["const"] == written_as.name
        assert stated["format_version"]["const"] == written_as.version
