from __future__ import annotations

import json

import pytest


def test_a_checkpoint_without_any_test_file(project, distribution):
    project.makepyfile(test_other="def test_other(): assert False, 'not collected'")
    result = project.runpytest("--wm-model", "shop:sensitive", "-v", *distribution)
    result.assert_outcomes(failed=4)
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "watermark guard: gating shop:sensitive; tests are not collected*",
            "shop:sensitive is watermark-sensitive: 1 of 2 logits reacts to chinese marks*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*gate_items.py*")
    result.stdout.no_fnmatch_line("*warning*")


def test_a_clean_model_passes(project, distribution):
    result = project.runpytest("--wm-model", "shop:blind", *distribution)
    result.assert_outcomes(passed=4)
    assert result.ret == 0


def test_one_item_for_each_model_layer_and_scenario(project):
    result = project.runpytest(
        "--wm-model=shop:blind", "--wm-model=shop:sensitive", "--co", "-q", "-pno:randomly"
    )
    result.stdout.fnmatch_lines(
        [
            f"shop:{model}::{layer}-{scenario}"
            for model in ("blind", "sensitive")
            for layer in ("logits", "features")
            for scenario in ("chinese", "latin")
        ]
    )


def test_a_model_is_probed_once_for_all_its_items(project):
    result = project.runpytest("--wm-model=shop:sensitive", "--wm-report")
    assert result.stdout.str().count("Most differentiable units") == 1


def test_several_models_are_surveyed(project):
    models = "--wm-model=shop:sensitive", "--wm-model=shop:blind"
    result = project.runpytest(*models, "--wm-report")
    result.stdout.fnmatch_lines_random(["Survey of 2 models", "sensitive  *", "blind  *"])
    result = project.runpytest(models[0], "--wm-report")
    result.stdout.no_fnmatch_line("Survey of*")
    result = project.runpytest(models[0], "--wm-model=shop:broken", "--wm-report")
    result.stdout.no_fnmatch_line("Survey of*")
    result.stdout.fnmatch_lines(["Could not be probed", "Not probed: shop:broken: *"])


def test_items_can_be_selected(project):
    result = project.runpytest("--wm-model=shop:sensitive", "-k", "features-latin")
    result.assert_outcomes(failed=1, deselected=3)


def test_beside_tests_when_paths_are_named(project):
    path = project.makepyfile(test_other="def test_other(): pass")
    result = project.runpytest(path, "--wm-model=shop:blind")
    result.assert_outcomes(passed=5)


def test_beside_tests_when_the_ini_file_names_models(project):
    project.makepyfile(test_other="def test_other(): pass")
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_model =\n  shop:blind\n")
    project.runpytest().assert_outcomes(passed=5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shop:broken", "*'shop:broken'*no such bucket*"),
        ("shop:missing", "*'shop:missing'*has no attribute*"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_an_error(project, spec, message):
    result = project.runpytest("--wm-model", spec)
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*gate_items.py*")


def test_a_model_that_fails_is_shown_once(project):
    project.makepyfile(
        picky="""
        from shop import Blind

        class Picky(Blind):
            def forward(self, x):
                raise RuntimeError("expected 1 channel")

        build = Picky
        """
    )
    result = project.runpytest("--wm-model=picky:build")
    result.assert_outcomes(errors=4)
    text = result.stdout.str()
    assert text.count("E       RuntimeError: expected 1 channel") == 1
    assert text.count("not probed (ModelError), see ") >= 3


@pytest.mark.parametrize("options", [["--junitxml=junit.xml"], ["--lf"], ["-x"], ["--co"]])
def test_with_pytest_s_own_options(project, options):
    result = project.runpytest("--wm-model=shop:blind", *options)
    assert result.ret == 0


def test_models_in_addopts_leave_the_tests_alone(project):
    project.makepyfile(test_other="def test_other(): pass")
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\naddopts = --wm-model=shop:blind\n")
    project.runpytest().assert_outcomes(passed=5)


def test_a_spec_of_no_known_form_is_a_usage_error(project, distribution):
    result = project.runpytest("--wm-model", "resnet18", *distribution)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: watermark guard: model spec 'resnet18'*torchvision:NAME*"])


def test_a_hook_loads_forms_of_its_own(project):
    project.makeconftest(
        """
        import shop

        def pytest_wm_load_model(spec, config):
            if spec.startswith("registry/"):
                return getattr(shop, spec.removeprefix("registry/"))()
        """
    )
    result = project.runpytest("--wm-model", "registry/blind", "--wm-model", "shop:blind")
    result.assert_outcomes(passed=8)


def test_a_headless_backbone_has_no_logits_to_gate(project):
    project.makepyfile(
        backbone="""
        from shop import Blind
        from torch import nn

        def build():
            model = Blind()
            model.fc = nn.Identity()
            return model
        """
    )
    result = project.runpytest("--wm-model", "backbone:build", "-rs", "--wm-threshold=1")
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*no head*"])


def test_known_units_are_allowed_with_a_reason(project):
    allowed = ["--wm-allow=logits:1 = ticket 12", "--wm-allow=features:2=ticket 12"]
    project.runpytest("--wm-model=shop:sensitive", *allowed).assert_outcomes(passed=4)
    result = project.runpytest(
        "--wm-model=shop:sensitive", allowed[0], "--wm-allow=features:0=old", "--wm-early-stop=0"
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["no longer needed in allow: features:0"])
    without = project.runpytest("--wm-model=shop:sensitive", "--wm-allow=logits:1")
    assert without.ret == pytest.ExitCode.USAGE_ERROR
    without.stderr.fnmatch_lines(["*expected LAYER:UNIT = REASON*"])


def test_reports_cross_from_workers_exactly(project):
    pytest.importorskip("xdist")
    reports = []
    for name, options in (("one", ["-p", "no:xdist"]), ("two", ["-n2"])):
        project.runpytest("--wm-model=shop:sensitive", f"--wm-json={name}.json", *options)
        reports.append(json.loads((project.path / f"{name}.json").read_text("utf-8")))
    assert reports[0] == reports[1]


def test_every_output_of_a_model_is_gated(project):
    project.makepyfile(
        two="""
        import shop
        from torch import nn

        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.colour, self.shape = shop.Blind(), shop.Sensitive()

            def forward(self, x):
                return {"colour": self.colour(x), "shape": self.shape(x)}
        """
    )
    result = project.runpytest("--wm-model=two:Two", "--wm-layers=logits", "-p", "no:xdist")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*logits?shape?*", "*--wm-allow='logits?shape?:*"])


def test_a_model_that_never_changes_is_not_checked(project):
    project.makepyfile(
        dead="""
        from shop import Blind

        class Dead(Blind):
            def forward(self, x):
                return super().forward(x * 0)

        build = Dead
        """,
        test_dead="""
        import pytest_watermark_guard as wm
        from dead import build

        def test_dead():
            wm.assert_not_watermark_sensitive(build())
        """,
    )
    result = project.runpytest("--wm-model=dead:build", "--wm-report", "test_dead.py")
    result.assert_outcomes(failed=5)
    assert result.ret == 6
    said = "could not be checked: no unit of its logits* ever changes*"
    result.stdout.fnmatch_lines([f"*Dead {said}", "*Gate not checked: no unit of its*"])
    result.stdout.no_fnmatch_line("*Gate passed*")
    result.stdout.no_fnmatch_line("*is not watermark-sensitive*")


def test_a_model_that_raises_is_told_once(project):
    project.makepyfile(
        picky="""
        from shop import Blind

        class Picky(Blind):
            def forward(self, x):
                assert False, "one channel"

        build = Picky
        """
    )
    result = project.runpytest("--wm-model=picky:build", "--wm-json=run.json")
    assert result.ret == 6
    failures = json.loads((project.path / "run.json").read_text("utf-8"))["failures"]
    assert [*failures] == ["picky:build"]
    assert "one channel" in failures["picky:build"]
