"""What machines read of a run: JUnit XML, GitHub Actions, exit codes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

MODEL = "--wm-model=shop:sensitive"
TEST = """
    import pytest
    import pytest_watermark_guard as wm
    from shop import blind, sensitive

    @pytest.fixture(scope="session")
    def report():
        return wm.probe(blind(), name="in a fixture")

    def test_two_gates():
        wm.assert_not_watermark_sensitive(blind(), layers="logits", threshold=0.9)
        wm.assert_not_watermark_sensitive(sensitive(), class_names=["beach", "cart:on,|`<b>"])

    def test_fixture(report):
        assert report.n_images == 64

    def test_without_a_probe():
        pass

    @pytest.mark.xfail(strict=True)
    def test_expected():
        wm.assert_not_watermark_sensitive(sensitive())

    def test_caught():
        with pytest.raises(AssertionError):
            wm.assert_not_watermark_sensitive(sensitive())
"""
SENTENCE = "Sensitive is watermark-sensitive: 1 of 2 logits and 1 of 3 features react to "


def properties(path):
    """Each test's properties, from the XML."""
    return {
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in ET.parse(path).iter("testcase")
    }


def test_junit_properties_of_gate_items(project, distribution):
    options = ["--junitxml=junit.xml", "--wm-junit", "--wm-early-stop=0"]
    project.runpytest(MODEL, *options, *distribution).assert_outcomes(failed=4)
    found = properties(project.path / "junit.xml")
    assert {name: len(told) for name, told in found.items()} == dict.fromkeys(
        ["logits-chinese", "logits-latin", "features-chinese", "features-latin"], 5
    )
    assert found["logits-latin"] == {
        "watermark_guard.model": "shop:sensitive",
        "watermark_guard.verdict": "failed",
        "watermark_guard.threshold": "0.95",
        "watermark_guard.n_images": "64",
        "watermark_guard.max_d.logits.latin": "1.0000",
    }


def test_junit_properties_of_tests(project, distribution):
    project.makepyfile(TEST)
    project.runpytest("--junitxml=junit.xml", "--wm-junit", *distribution)
    found = properties(project.path / "junit.xml")
    assert found["test_without_a_probe"] == {}
    told = found["test_two_gates"]
    assert told["watermark_guard.model"] == "Blind"
    assert told["watermark_guard.verdict"] == "passed"
    assert told["watermark_guard.threshold"] == "0.9"
    assert float(told["watermark_guard.max_d.logits.latin"]) < 0.9
    assert "watermark_guard.max_d.features.latin" not in told
    assert told["watermark_guard.2.model"] == "Sensitive"
    assert told["watermark_guard.2.verdict"] == "failed"
    assert told["watermark_guard.2.max_d.features.chinese"] == "1.0000"
    told = found["test_fixture"]
    assert told["watermark_guard.model"] == "in a fixture"
    assert told["watermark_guard.n_images"] == "64"
    assert "watermark_guard.verdict" not in told


def test_junit_properties_are_for_those_who_ask(project):
    project.runpytest(MODEL, "--junitxml=junit.xml")
    assert not any(properties(project.path / "junit.xml").values())
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_junit = true\n")
    project.runpytest(MODEL, "--junitxml=junit.xml")
    assert all(properties(project.path / "junit.xml").values())


def test_junit_properties_of_a_rerun_are_its_own(project):
    project.makepyfile(TEST)
    options = ["--junitxml=junit.xml", "--wm-junit", "--reruns=1", "-p", "rerunfailures"]
    project.runpytest("-k", "two_gates", *options)
    told = properties(project.path / "junit.xml")["test_two_gates"]
    assert "watermark_guard.2.model" in told
    assert "watermark_guard.3.model" not in told


def errors(result):
    return [line for line in result.outlines if "::error" in line]


@pytest.fixture
def actions(project, monkeypatch):
    """A step of GitHub Actions; returns the file of its summary."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(project.path))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    return project.path / "summary.md"


def test_an_annotation_for_each_failed_gate(project, actions, distribution):
    path = project.makepyfile(test_it=TEST)
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "cart:on" in text)
    result = project.runpytest(*distribution)
    (told,) = errors(result)
    title = "title=Watermark-sensitive model"
    assert told.startswith(f"::error file=test_it.py,line={line},{title}::{SENTENCE}")
    assert "%0Alogits cart:on,|`<b> [1], chinese: d 1.000%0A" in told
    assert told.endswith("%0A... and 1 more")


def test_all_items_of_a_model_are_one_annotation(project, actions, distribution):
    (told,) = errors(project.runpytest(MODEL, *distribution))
    assert told.startswith("::error title=Watermark-sensitive model::shop:sensitive is")
    assert told.count("is watermark-sensitive: 1 of") == 4


def test_annotations_are_never_captured(project, actions):
    project.makepyfile(TEST)
    (told,) = errors(project.runpytest("-rA", "--capture=fd"))
    assert told.startswith("::error ")


def test_at_most_ten_annotations(project, actions):
    project.makepyfile(
        """
        import pytest
        import pytest_watermark_guard as wm
        from shop import sensitive

        @pytest.mark.parametrize("n", range(12))
        def test_it(n):
            wm.assert_not_watermark_sensitive(sensitive(), name=f"model {n}")
        """
    )
    result = project.runpytest()
    result.assert_outcomes(failed=12)
    assert len(errors(result)) == 10
    result.stdout.fnmatch_lines(["watermark guard: ... and 2 more of them"])


def test_a_rerun_that_passes_leaves_no_annotation(project, actions):
    project.makepyfile(
        """
        import pytest_watermark_guard as wm
        from shop import blind, sensitive

        models = [blind(), sensitive()]

        def test_it():
            wm.assert_not_watermark_sensitive(models.pop())
        """
    )
    result = project.runpytest("--reruns=1", "-p", "rerunfailures")
    result.assert_outcomes(passed=1)
    assert errors(result) == []


def test_elsewhere_nothing_is_annotated(project, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    assert errors(project.runpytest(MODEL)) == []
    assert not (project.path / "summary.md").exists()


def test_the_summary_of_the_step(project, actions, distribution):
    actions.write_text("# Mine\n", encoding="utf-8")
    project.runpytest(MODEL, "--wm-model=shop:blind", *distribution)
    text = actions.read_text("utf-8")
    assert text.startswith("# Mine\n## Watermark sensitivity\n")
    assert text.count("### ") == 2
    assert "### shop&#58;sensitive: failed\n" in text
    assert "### shop&#58;blind: passed\n" in text
    assert "| logits | chinese | 2 | 1 | 1&#46;000 | unit 1 |\n" in text


def test_no_probe_no_summary(project, actions):
    project.makepyfile("def test_nothing(): pass")
    project.runpytest().assert_outcomes(passed=1)
    assert not actions.exists()


def test_a_summary_that_cannot_be_written_is_told(project, actions, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path))
    result = project.runpytest("--wm-model=shop:blind")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["watermark guard: could not write the step summary: *"])


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--wm-model=shop:blind"], 0),
        (["--wm-model=shop:sensitive"], 1),
        (["--wm-model=shop:broken"], 6),
        (["--wm-model=shop:broken", "--wm-model=shop:blind"], 6),
        (["--wm-model=shop:broken", "--wm-model=shop:sensitive"], 1),
        (["--wm-model=shop:blind", "--wm-threshold=2"], 4),
        (["--wm-model=shop:blind", "-k", "nothing"], 5),
    ],
)
def test_exit_codes(project, options, code, distribution):
    assert project.runpytest(*options, *distribution).ret == code


def test_a_model_that_could_not_be_checked_is_told_everywhere(project, actions, distribution):
    options = ["--wm-report", "--wm-json=wm.json", "--wm-html=wm.html", *distribution]
    result = project.runpytest("--wm-model=shop:broken", "--wm-model=shop:blind", *options)
    (told,) = errors(result)
    assert told.startswith("::error title=Model that could not be probed::shop:broken: broken() ")
    result.stdout.fnmatch_lines(["Not probed: shop:broken: *"])
    assert "### shop&#58;broken: could not be probed" in actions.read_text("utf-8")
    assert [*json.loads((project.path / "wm.json").read_text("utf-8"))["failures"]] == [
        "shop:broken"
    ]
    page = (project.path / "wm.html").read_text("utf-8")
    assert ", 1 could not be probed" in page


def test_a_test_that_could_not_check_is_no_failed_gate(project, actions, distribution):
    project.makepyfile(
        test_it="""
        import shop
        import pytest_watermark_guard as wm

        def test_gate():
            wm.assert_not_watermark_sensitive(shop.blind(), layers=("nosuch",))
        """
    )
    result = project.runpytest("--wm-json=wm.json", "--wm-report", *distribution)
    assert result.ret == 6
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["Could not be probed", "Not probed: test_it.py::test_gate: *"])
    (told,) = errors(result)
    assert told.startswith("::error title=Model that could not be probed::test_it.py::test_gate:")
    assert "nosuch" in told
    failures = json.loads((project.path / "wm.json").read_text("utf-8"))["failures"]
    assert [*failures] == ["test_it.py::test_gate"]


def test_a_gate_that_cannot_decide_is_inconclusive_everywhere(project, actions, distribution):
    result = project.runpytest(
        "--wm-model=shop:sensitive",
        "--wm-model=shop:blind",
        "--wm-max-images=12",
        "--wm-report",
        "--wm-json=wm.json",
        "--wm-html=wm.html",
        "--wm-junit",
        "--junitxml=junit.xml",
        *distribution,
    )
    assert result.ret == 6
    text = result.stdout.str()
    assert "not probed" not in text.lower()
    assert "be probed" not in text
    assert "During handling" not in text
    result.stdout.fnmatch_lines(["Inconclusive: shop:sensitive: 12 images cannot tell *"])
    told = [line for line in errors(result) if "Gate that could not decide" in line]
    assert "shop:sensitive is inconclusive: 12 images cannot tell" in told[0]
    run = json.loads((project.path / "wm.json").read_text("utf-8"))
    assert run["failures"] == {}
    gates = {report["model"]: report["gates"][0] for report in run["reports"]}
    assert gates["shop:sensitive"]["outcome"] == "inconclusive"
    assert gates["shop:sensitive"]["images_needed"] > 12
    junit = (project.path / "junit.xml").read_text("utf-8")
    assert 'name="watermark_guard.verdict" value="inconclusive"' in junit
    assert 'name="watermark_guard.images_needed"' in junit
    assert "### shop&#58;sensitive: inconclusive" in actions.read_text("utf-8")
    page = (project.path / "wm.html").read_text("utf-8")
    assert "inconclusive" in page.partition("</h1>")[0]
    assert "could not be" not in page


def test_an_error_of_a_test_is_a_failure_of_it(project):
    project.makepyfile(test_it="def test_it(): assert False")
    assert project.runpytest("--wm-model=shop:broken", "test_it.py").ret == 1


def test_a_section_in_the_page_of_pytest_html(project):
    pytest.importorskip("pytest_html", reason="pytest-html is not installed")
    project.makepyfile(TEST)
    result = project.runpytest("--html=page.html", "--self-contained-html")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    page = (project.path / "page.html").read_text("utf-8")
    section = page[page.index("<h2>Watermark sensitivity</h2>") :].split("</pre>")[0]
    assert "Most differentiable units" in section
    assert "cart:on,|`&lt;b&gt; [1]" in section
    assert "<b>" not in section


def test_a_survey_in_the_page_of_pytest_html(project):
    pytest.importorskip("pytest_html", reason="pytest-html is not installed")
    specs = ["--wm-model=shop:blind", "--wm-model=shop:sensitive"]
    project.runpytest(*specs, "--html=page.html", "--self-contained-html")
    page = (project.path / "page.html").read_text("utf-8")
    assert "Survey of 2 models" in page[page.index("<h2>Watermark sensitivity</h2>") :]
