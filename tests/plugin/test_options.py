from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_watermark_guard.plugin.options import options_table

OPTIONS_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "options.md"

SHOW = """
    import pytest

    @pytest.fixture
    def show(request):
        from pytest_watermark_guard.probing.context import current_run
        return lambda: print("SETTINGS", current_run().settings)
"""


def settings_line(result):
    return next(line for line in result.outlines if "SETTINGS" in line)


def test_argument_over_marker_over_command_line_over_ini_over_default(project):
    project.makeconftest(SHOW)
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_seed = 1\nwm_threshold = 0.61\nwm_max_images = 3\nwm_layers = logits")
    project.makepyfile(
        """
        import pytest, shop
        import pytest_watermark_guard as wm

        @pytest.mark.wm_settings(threshold=0.63, max_images=5)
        class TestIt:
            @pytest.mark.wm_settings(max_images=6)
            def test_it(self, show):
                show()
                report = wm.probe(shop.blind(), max_images=7)
                assert report.n_images == 7
                assert report.layers == ("logits",)
                assert report.seed == 2
        """
    )
    result = project.runpytest("-s", "--wm-seed=2", "--wm-threshold=0.62")
    result.assert_outcomes(passed=1)
    line = settings_line(result)
    for expected in ("seed=2", "threshold=0.63", "max_images=6", "layers=('logits',)"):
        assert expected in line
    assert "precision='auto'" in line


def test_a_class_s_marker_reaches_its_fixtures(project):
    project.makepyfile(
        """
        import pytest, shop
        import pytest_watermark_guard as wm

        @pytest.mark.wm_settings(max_images=3)
        class TestIt:
            @pytest.fixture(scope="class")
            def report(self, wm_guard):
                return wm_guard.probe(shop.blind())

            @pytest.mark.wm_settings(max_images=4)
            def test_it(self, report):
                assert report.n_images == 3
        """
    )
    project.runpytest().assert_outcomes(passed=1)


def test_a_marker_does_not_reach_wider_fixtures(project):
    project.makepyfile(
        """
        import pytest, shop
        import pytest_watermark_guard as wm

        @pytest.fixture(scope="module")
        def report():
            return wm.probe(shop.blind())

        @pytest.mark.wm_settings(max_images=4)
        def test_it(report):
            assert report.n_images == 64
            assert wm.probe(shop.blind()).n_images == 4
        """
    )
    project.runpytest().assert_outcomes(passed=1)


def test_settings_end_with_the_test(project):
    project.makepyfile("def test_it(): pass")
    project.runpytest("--wm-seed=5").assert_outcomes(passed=1)
    from pytest_watermark_guard.probing.context import current_run

    assert current_run().settings.seed == 17


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--wm-threshold=0.5", "*threshold must be a number in (0.5, 1*"),
        ("--wm-threshold=high", "*'high'*"),
        ("--wm-scenarios=klingon", "*unknown scenario 'klingon'*"),
        ("--wm-precision=float8", "*precision must be one of*"),
        ("--wm-max-images=some", "*'some'*"),
        ("--wm-layers=,", "*layers must be one or more*"),
    ],
)
@pytest.mark.parametrize("where", ["command line", "ini"])
def test_wrong_values_are_usage_errors(project, option, message, where):
    project.makepyfile("def test_it(): pass")
    if where == "ini":
        name, _, value = option.removeprefix("--").partition("=")
        ini = f"[pytest]\n{name.replace('-', '_')} = {value}\n"
        (project.path / "tox.ini").write_text(ini)
        result = project.runpytest()
    else:
        result = project.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    # pytest itself checks numbers in configuration files.
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("threshold=2", "*test_it: @pytest.mark.wm_settings: threshold must be*"),
        ("tresholt=0.9", "*unknown setting 'tresholt'*"),
        ("0.9", "*takes keyword arguments only*"),
        ("scenarios=('klingon',)", "*unknown scenario 'klingon'*"),
    ],
)
def test_wrong_marker_arguments_are_usage_errors_at_collection(project, arguments, message):
    project.makepyfile(
        f"""
        import pytest

        @pytest.mark.wm_settings({arguments})
        def test_it(): pass
        """
    )
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_wrong_marker_is_told_by_workers_too(project):
    pytest.importorskip("xdist")
    project.makepyfile(
        """
        import pytest

        @pytest.mark.wm_settings(threshold=2)
        def test_it(): pass
        """
    )
    result = project.runpytest("-n2")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_it: @pytest.mark.wm_settings: threshold must be*"])


def test_settings_in_pyproject_toml(project, photos):
    (project.path / "tox.ini").unlink()
    project.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        pythonpath = ["."]
        wm_images = "{photos}"
        wm_scenarios = ["chinese", "latin"]
        wm_layers = "logits"
        wm_threshold = "0.9"
        wm_max_images = "7"
        wm_early_stop = "0"
        wm_allow = ["logits:1 = ticket 12"]
        wm_report = true
        """
    )
    result = project.runpytest("--wm-model=shop:sensitive", "--wm-inconclusive=pass")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["7 images drawn from the 64 images*"])


@pytest.mark.skipif(
    pytest.version_tuple < (9, 0), reason="this pytest has no TOML table of its own"
)
def test_settings_in_pytest_s_own_toml_table(project, photos):
    (project.path / "tox.ini").unlink()
    project.makepyprojecttoml(
        f"""
        [tool.pytest]
        pythonpath = ["."]
        wm_images = "{photos}"
        wm_scenarios = ["chinese", "latin"]
        wm_threshold = 0.9
        wm_max_images = 7
        wm_early_stop = 0
        wm_allow = ["logits:1 = ticket 12"]
        wm_report = true
        """
    )
    result = project.runpytest(
        "--wm-model=shop:sensitive", "--wm-layers=logits", "--wm-inconclusive=pass"
    )
    result.assert_outcomes(passed=2)
    wrong = project.path / "pyproject.toml"
    wrong.write_text(wrong.read_text().replace("0.9", '"high"'))
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *wm_threshold*expects a float*"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--wm-images=", "*images is empty*"),
        ("--wm-json=/proc/no/such.json", "*json: cannot write '/proc/no/such.json'*"),
    ],
)
def test_paths_that_cannot_be_used(project, option, message):
    result = project.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: watermark guard: {message}"])


def test_images_on_the_command_line_are_relative_to_where_it_was_typed(project, photos):
    (project.path / "photos").symlink_to(photos)
    project.makepyfile(
        """
        import shop
        import pytest_watermark_guard as wm

        def test_it(monkeypatch, tmp_path):
            monkeypatch.chdir(tmp_path)
            assert wm.probe(shop.blind(), max_images=3).n_images == 3
        """
    )
    project.runpytest("--wm-images=photos").assert_outcomes(passed=1)


def test_the_built_in_set_has_a_word(project):
    project.makepyfile(
        """
        import shop
        import pytest_watermark_guard as wm

        def test_it():
            report = wm.probe(shop.blind(), images="builtin", max_images=3)
            assert "built-in set" in report.baseline
        """
    )
    project.runpytest("--wm-images=builtin").assert_outcomes(passed=1)


def test_images_in_the_ini_file_are_relative_to_it(project, photos, monkeypatch):
    (project.path / "baseline").symlink_to(photos)
    (project.path / "tox.ini").write_text("[pytest]\nwm_images = baseline\npythonpath = .")
    sub = project.mkdir("sub")
    project.makepyfile(
        **{
            "sub/test_it": """
            import shop
            import pytest_watermark_guard as wm

            def test_it():
                assert wm.probe(shop.blind(), scenarios="latin").n_images == 64
            """
        }
    )
    monkeypatch.chdir(sub)
    project.runpytest(
        "--rootdir", project.path, "-c", project.path / "tox.ini", sub
    ).assert_outcomes(passed=1)


def test_help_and_markers(project):
    result = project.runpytest("--help")
    result.stdout.fnmatch_lines(
        ["watermark sensitivity of vision models:", "*--wm-model=SPEC*", "*wm_threshold*"]
    )
    project.runpytest("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.wm_settings(*threshold=...*"]
    )


@pytest.mark.parametrize("options", [["--help"], ["--collect-only"], ["--fixtures"]])
def test_help_and_collection_import_no_torch(project, options):
    project.makepyfile(test_it="import pytest_watermark_guard as wm\ndef test_it(wm_guard): pass")
    project.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            heavy = {"torch", "torchvision", "numpy", "PIL", "sklearn"} & sys.modules.keys()
            print("HEAVY", sorted(heavy))
        """
    )
    # numpy comes with pytest.approx's users and other plugins; here nobody else is loaded.
    result = project.runpytest_subprocess(
        "-p", "no:hypothesispytest", "-p", "no:randomly", *options
    )
    result.stdout.fnmatch_lines(["HEAVY []"])


def test_scenarios_of_a_conftest_go_by_name(project):
    project.makeconftest(
        """
        import pytest_watermark_guard as wm

        def pytest_wm_scenarios(config):
            return [wm.Scenario("stock", ["©", "ST"], length=2)]
        """
    )
    result = project.runpytest("--wm-model=shop:blind", "--wm-scenarios=stock", "--wm-json=r.json")
    result.assert_outcomes(passed=2)
    report = json.loads((project.path / "r.json").read_text("utf-8"))["reports"][0]
    assert {scores["scenario"] for scores in report["scores"]} == {"stock"}


def test_a_hook_receives_every_report_once(project, distribution):
    project.makeconftest(
        """
        def pytest_wm_report(report, config):
            print("RECEIVED", report.model, report.baseline[:2])
        """
    )
    result = project.runpytest("-s", "--wm-model=shop:blind", *distribution)
    assert result.stdout.str().count("RECEIVED shop:blind 64") == 1


def test_runs_nested_in_one_process_do_not_mix(project):
    project.makepyfile(
        test_outer="""
        import shop
        import pytest_watermark_guard as wm
        pytest_plugins = ["pytester"]

        def test_outer(pytester):
            pytester.makepyfile(test_inner="def test_inner(): pass")
            pytester.runpytest_inprocess("--wm-seed=99").assert_outcomes(passed=1)
            assert wm.probe(shop.blind(), scenarios="latin").seed == 17
        """
    )
    project.runpytest().assert_outcomes(passed=1)


def test_early_verdicts_are_reported_and_can_be_turned_off(project):
    early = project.runpytest("--wm-model=shop:blind", "--wm-report")
    told = "Verdicts took * of 64 images, at error probability 0.001 for all of them."
    early.stdout.fnmatch_lines(["*max d*unit*", told])
    full = project.runpytest("--wm-model=shop:blind", "--wm-report", "--wm-early-stop=0")
    full.stdout.no_fnmatch_line("Verdicts took*")
    wrong = project.runpytest("--wm-model=shop:blind", "--wm-early-stop=2")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["ERROR: *early_stop must be a probability*"])


def test_scrambled_marks_beside_the_text(project, distribution):
    result = project.runpytest(
        "--wm-model=shop:sensitive",
        "--wm-report",
        "--wm-control",
        "--wm-json=c.json",
        *distribution,
    )
    result.stdout.fnmatch_lines(["Their controls", "*scenario *A *A/control *A scrambled *A blobs"])
    (report,) = json.loads((project.path / "c.json").read_text("utf-8"))["reports"]
    assert len(report["controls"]) == len(report["scores"]) == 4
    assert len(report["controls_alone"]) == 2 * 4


def test_without_the_cache(project, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_no_cache = true\n")
    project.runpytest("--wm-model=shop:blind").assert_outcomes(passed=4)
    assert not list(tmp_path.rglob("*.npy"))
    (project.path / "tox.ini").write_text(
        (project.path / "tox.ini").read_text().replace("wm_no_cache = true", "")
    )
    project.runpytest("--wm-model=shop:blind").assert_outcomes(passed=4)
    assert list(tmp_path.rglob("*.npy"))


def test_the_docs_have_the_table_of_all_options(update_golden):
    text = OPTIONS_PAGE.read_text("utf-8")
    start = text.index("| option | meaning | default |")
    end = text.index("\n\n", start)
    if update_golden:
        OPTIONS_PAGE.write_text(text[:start] + options_table() + text[end:], "utf-8")
    else:
        assert text[start:end] == options_table()


MORE_SETTINGS = """
    from dataclasses import dataclass
    from pytest_watermark_guard import settings

    def check_loudness(name, value):
        if not 0 <= value <= 11:
            raise settings.SettingsError(f"{name} must be in [0, 11], got {value!r}")
        return value

    @dataclass(frozen=True)
    class MoreSettings(settings.Settings):
        loudness: float = settings.setting(
            1.5, meaning="how loud it is", metavar="L", check=check_loudness, ini_type="float"
        )
        quick: bool = settings.setting(True, meaning="be slow", check=lambda name, value: value)

    settings.Settings = MoreSettings
"""


def test_a_field_is_all_that_a_new_setting_needs(project, monkeypatch):
    project.makeconftest(SHOW)
    project.makepyfile(
        more_settings=MORE_SETTINGS,
        test_it="""
        import pytest

        def test_it(show):
            show()

        @pytest.mark.wm_settings(loudness=11, quick=True)
        def test_marked(show):
            show()
        """,
    )
    monkeypatch.setenv("PYTHONPATH", str(project.path), prepend=os.pathsep)

    def run(*options):
        # In a process of its own, where the plugin sees the larger class from the start.
        return project.runpytest_subprocess("-p", "more_settings", *options)

    def expect(without_marker, *options):
        result = run("-s", "-p", "no:randomly", *options)
        shown = [line for line in result.outlines if "SETTINGS" in line]
        assert without_marker in shown[0]
        assert "loudness=11, quick=True" in shown[1]

    expect("loudness=3.5, quick=False", "--wm-loudness=3.5", "--wm-no-quick", "--wm-html=run.html")
    page = (project.path / "run.html").read_text("utf-8")
    assert "--wm-loudness=3.5 --wm-no-quick" in page
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_loudness = 2.5\nwm_no_quick = true\n")
    expect("loudness=2.5, quick=False")
    run("--help").stdout.fnmatch_lines(["*--wm-loudness=L*how loud it is (default: 1.5)*"])
    run("--markers").stdout.fnmatch_lines(["@pytest.mark.wm_settings(*loudness=..., quick=...)*"])
    wrong = run("--wm-loudness=12")
    assert wrong.ret == pytest.ExitCode.USAGE_ERROR
    wrong.stderr.fnmatch_lines(["ERROR: *loudness must be in [[]0, 11], got 12.0"])
