"""With pytest-xdist, all gates of a model run in one worker, so that it is loaded once."""

from __future__ import annotations

import pytest

pytest.importorskip("xdist")

COUNTED = """
    import os
    import shop

    def loaded(name):
        with open("loads.txt", "a") as file:
            file.write(f"{name} {os.environ['PYTEST_XDIST_WORKER']}\\n")
        return shop.Blind()

    def one():
        return loaded("one")

    def two():
        return loaded("two")
"""
MODELS = "--wm-model=counted:one", "--wm-model=counted:two"


@pytest.fixture
def counted(project):
    """Models that note where they are loaded, and tests beside their gates."""
    project.makepyfile(
        counted=COUNTED,
        test_other="""
        import pytest

        @pytest.mark.parametrize("n", range(6))
        def test_other(n):
            pass
        """,
    )
    return project


def loads(project):
    lines = (project.path / "loads.txt").read_text().splitlines()
    return sorted(line.split()[0] for line in lines)


@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "loadgroup", "worksteal"])
def test_a_model_is_loaded_in_one_worker(counted, dist):
    result = counted.runpytest(*MODELS, "test_other.py", "-n", "2", "--dist", dist)
    result.assert_outcomes(passed=14)
    assert loads(counted) == ["one", "two"]


def test_each_worker_runs_everything_where_that_is_asked_for(counted):
    result = counted.runpytest(*MODELS, "test_other.py", "-n", "2", "--dist", "each")
    result.assert_outcomes(passed=28)
    assert loads(counted) == ["one", "one", "two", "two"]


def test_a_name_with_the_sign_of_xdist_s_groups(counted):
    counted.makeconftest(
        """
        import counted

        def pytest_wm_load_model(spec, config):
            return getattr(counted, spec.partition("@")[0])()
        """
    )
    models = "--wm-model=one@random", "--wm-model=two@random"
    result = counted.runpytest(*models, "-n", "2", "--dist", "loadgroup", "-v")
    result.assert_outcomes(passed=8)
    assert loads(counted) == ["one", "two"]
    result.stdout.fnmatch_lines(["*PASSED*one@random::logits-chinese*"])


def test_a_scheduler_of_another_s_stays(counted):
    counted.makeconftest(
        """
        from xdist.scheduler.loadfile import LoadFileScheduling

        class Mine(LoadFileScheduling):
            def _split_scope(self, nodeid):
                return "all"

        def pytest_xdist_make_scheduler(config, log):
            return Mine(config, log)
        """
    )
    result = counted.runpytest(*MODELS, "test_other.py", "-n", "2", "-v")
    result.assert_outcomes(passed=14)
    result.stdout.fnmatch_lines(["scheduling tests via Mine"])
    assert loads(counted) == ["one", "two"]


def test_a_misspelt_model_is_an_error_of_its_gates(project):
    result = project.runpytest("--wm-model=torchvision:resnt18", "-n", "2")
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(["*has no classification model 'resnt18'; did you mean *resnet18*"])


@pytest.mark.parametrize(
    "spec", ["no.onnx", "exported:no.pt2", "torchvision:resnet18?weights=no.pt"]
)
def test_a_file_that_is_not_there_is_told_before_workers_start(project, spec):
    result = project.runpytest(f"--wm-model={spec}", "-n", "2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: watermark guard: *no.*"])
    result.stdout.no_fnmatch_line("*gw0*")
