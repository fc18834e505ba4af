"""What a run leaves when its end goes wrong: verdicts always, and never half a file."""

from __future__ import annotations

import json

import pytest

OPTIONS = "--wm-json=out/run.json", "--wm-html=out/run.html"
TROUBLES = {
    "full disk": (
        """
        import pytest
        import resource

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_sessionfinish():
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
            try:
                return (yield)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        """,
        "File too large",
    ),
    "a file in place of the folder": (
        """
        from pathlib import Path

        def pytest_sessionfinish():
            Path("out").rename("moved")
            Path("out").write_text("in the way")
        """,
        "File exists",
    ),
    "an error of our own": (
        """
        from pytest_watermark_guard.reports.probe import ProbeReport

        def pytest_sessionfinish():
            ProbeReport.to_dict = ProbeReport.layers = None
        """,
        "TypeError: 'NoneType' object is not *",
    ),
}


@pytest.fixture
def earlier(project):
    """A project with both files of an earlier run."""
    folder = project.mkdir("out")
    for name in ("run.json", "run.html"):
        (folder / name).write_text(f"an earlier {name}", encoding="utf-8")
    return project


@pytest.mark.parametrize("trouble", TROUBLES)
def test_files_that_cannot_be_written_cost_neither_verdicts_nor_files(
    earlier, trouble, monkeypatch
):
    from pytest_watermark_guard.reports.probe import ProbeReport

    if trouble == "full disk":
        pytest.importorskip("resource", reason="needs POSIX")
    for name in ("to_dict", "layers"):  # which a conftest changes
        monkeypatch.setattr(ProbeReport, name, vars(ProbeReport)[name])
    code, reason = TROUBLES[trouble]
    earlier.makeconftest(code)
    result = earlier.runpytest("--wm-model=shop:sensitive", *OPTIONS)
    result.assert_outcomes(failed=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*= FAILURES =*", f"watermark guard: could not write *run.json: {reason}*", "FAILED shop*"]
    )
    result.stdout.fnmatch_lines([f"watermark guard: could not write *run.html: {reason}*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*wrote*")
    folder = next(p for p in (earlier.path / "moved", earlier.path / "out") if p.is_dir())
    assert {p.name: p.read_text("utf-8") for p in folder.iterdir()} == {
        name: f"an earlier {name}" for name in ("run.json", "run.html")
    }


def test_a_clean_run_fails_by_a_file_that_is_not_there(earlier):
    earlier.makeconftest(TROUBLES["a file in place of the folder"][0])
    result = earlier.runpytest("--wm-model=shop:blind", *OPTIONS)
    result.assert_outcomes(passed=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_that_cannot_write_says_so_before_it_begins(earlier):
    result = earlier.runpytest("--wm-model=shop:blind", "--wm-json=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: watermark guard: json: cannot write *out': Is a dir*"])
    result = earlier.runpytest("--wm-model=shop:blind", "--wm-json=out/run.json/run.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_a_run_leaves_no_file_before_its_end(project):
    project.makeconftest(
        """
        import os

        def pytest_collection_finish():
            assert os.listdir("new") == []
        """
    )
    result = project.runpytest("--wm-model=shop:blind", "--wm-json=new/run.json", "-k", "latin")
    result.assert_outcomes(passed=2, deselected=2)
    assert (project.path / "new/run.json").exists()


def test_a_run_that_only_collects_leaves_an_earlier_one_s_files(earlier):
    options = "--wm-model=shop:blind", *OPTIONS, "--wm-update-known"
    result = earlier.runpytest(*options, "--collect-only")
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*wrote*")
    assert (earlier.path / "out/run.json").read_text("utf-8") == "an earlier run.json"
    assert (earlier.path / "out/run.html").read_text("utf-8") == "an earlier run.html"


INTERRUPTIONS = {
    "Ctrl-C": "raise KeyboardInterrupt",
    "pytest.exit": 'pytest.exit("enough", returncode=0)',
    "an internal error": "raise RuntimeError",
    "an early end": 'item.session.shouldstop = "enough"',
}


@pytest.mark.parametrize("how", INTERRUPTIONS)
def test_an_interrupted_run_says_so_in_its_files(project, how):
    project.makeconftest(
        f"""
        import pytest

        def pytest_runtest_protocol(item):
            if item.name == "test_last":
                {INTERRUPTIONS[how]}
        """
    )
    project.makepyfile(
        test_it="""
        import shop

        def test_first(wm_guard):
            wm_guard.probe(shop.blind())

        def test_last():
            pass
        """
    )
    project.runpytest_inprocess("-pno:randomly", *OPTIONS, no_reraise_ctrlc=True)
    run = json.loads((project.path / "out/run.json").read_text("utf-8"))
    assert run["interrupted"] is True
    assert len(run["reports"]) == 1
    assert "was interrupted" in (project.path / "out/run.html").read_text("utf-8")


def test_so_does_one_that_its_first_failure_ends(project, distribution):
    result = project.runpytest("--wm-model=shop:sensitive", "-x", *OPTIONS, *distribution)
    assert result.ret in (1, 2)
    assert json.loads((project.path / "out/run.json").read_text("utf-8"))["interrupted"] is True


def test_one_that_ends_by_itself_does_not(project, distribution):
    project.runpytest("--wm-model=shop:sensitive", *OPTIONS, *distribution)
    assert json.loads((project.path / "out/run.json").read_text("utf-8"))["interrupted"] is False
    assert "was interrupted" not in (project.path / "out/run.html").read_text("utf-8")
