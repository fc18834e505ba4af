from __future__ import annotations

import json

import pytest

TEST = """
    import pytest
    import pytest_watermark_guard as wm
    from shop import sensitive, blind

    def test_sensitive():
        wm.assert_not_watermark_sensitive(sensitive(), class_names=["beach", "carton"])

    def test_blind():
        report = wm.assert_not_watermark_sensitive(blind())
        assert report.early_stop.verdict == "clean"
        assert report.n_images <= report.early_stop.n_available == 64
"""


def test_the_one_liner(project, distribution):
    project.makepyfile(TEST)
    result = project.runpytest("--wm-report", "--wm-json", "out/wm.json", *distribution)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*wm.assert_not_watermark_sensitive(sensitive(), class_names=*",
            "E *Sensitive is watermark-sensitive: 1 of 2 logits and 1 of 3 features react to "
            "chinese and latin marks (d >= 0.95).",
            "E *layer *unit *scenario *reaction *A *95 % interval *d",
            "E *logits *carton ?1? *chinese *fires on *1.000 *1.000",
            "E *features *unit 2 *latin *fires on *1.000*",
            "*watermark sensitivity*",
            "Sensitive",
            "Made by test_the_one_liner.py::test_sensitive.",
        ]
    )
    # The failure shows the user's line, not ours; one table for each probe, wherever it was made.
    result.stdout.no_fnmatch_line("*gate.py*")
    text = result.stdout.str()
    assert text.count("Most differentiable units") == 2
    data = json.loads((project.path / "out" / "wm.json").read_text("utf-8"))
    assert sorted(report["model"] for report in data["reports"]) == ["Blind", "Sensitive"]
    flagged = {r["model"]: {u["name"] for u in r["sensitive"]} for r in data["reports"]}
    assert flagged == {"Blind": set(), "Sensitive": {"carton", "2"}}


def test_the_report_tells_the_gate_s_own_verdict(project, distribution):
    project.makepyfile(
        """
        import pytest_watermark_guard as wm
        from shop import sensitive

        def test_it():
            allow = {"logits:1": "known", "features:2": "known too", "features:0": "old"}
            wm.assert_not_watermark_sensitive(
                sensitive(), threshold=0.99, allow=allow, early_stop=0
            )
        """
    )
    result = project.runpytest("--wm-report", "--wm-json=wm.json", *distribution)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "Gate passed: nothing else reaches 0.99; strongest: features unit *",
            "allowed: logits unit 1, chinese, d 1.000: known",
            "no longer needed in allow: features:0",
        ]
    )
    (report,) = json.loads((project.path / "wm.json").read_text("utf-8"))["reports"]
    (gate,) = report["gates"]
    assert (gate["passed"], gate["threshold"], gate["stale"]) == (True, 0.99, ["features:0"])
    assert {unit["reason"] for unit in gate["allowed"]} == {"known", "known too"}


def test_probes_made_while_collecting_go_by_the_run_too(project):
    project.makepyfile(
        """
        import pytest_watermark_guard as wm
        from shop import blind

        REPORT = wm.probe(blind(), name="early", max_images=5)

        def test_it():
            assert REPORT.scenarios == ("chinese", "latin")
        """
    )
    result = project.runpytest("--wm-report")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["early", "5 images drawn from the 64 images*"])


def test_no_report_unless_asked_for(project):
    project.makepyfile(TEST)
    result = project.runpytest()
    result.stdout.no_fnmatch_line("*watermark sensitivity*")


def test_a_report_without_a_probe_says_so(project, distribution):
    project.makepyfile("def test_nothing(): pass")
    result = project.runpytest("--wm-report", *distribution)
    result.stdout.fnmatch_lines(["no probe was made"])


def test_without_terminal_and_cache(project):
    project.makepyfile(TEST)
    result = project.runpytest("-p", "no:terminal", "-p", "no:cacheprovider", "--wm-json=wm.json")
    assert result.ret == 1
    assert len(json.loads((project.path / "wm.json").read_text("utf-8"))["reports"]) == 2


def test_a_probe_in_a_wide_fixture_is_reported_once(project, distribution):
    project.makepyfile(
        """
        import pytest
        import pytest_watermark_guard as wm
        from shop import blind

        @pytest.fixture(scope="session")
        def report():
            return wm.probe(blind(), name="shared")

        @pytest.mark.parametrize("n", range(4))
        def test_it(report, n):
            assert report["logits", "chinese"].auroc.shape == (2,)
        """
    )
    result = project.runpytest("--wm-report", *distribution)
    result.assert_outcomes(passed=4)
    assert result.stdout.str().count("Most differentiable units") == 1


def test_reruns_do_not_repeat_the_report(project):
    project.makepyfile(TEST)
    result = project.runpytest("--wm-report", "--reruns", "2", "-p", "rerunfailures")
    assert "2 rerun" in result.stdout.str()
    assert result.stdout.str().count("Most differentiable units") == 2


def test_in_random_order(project):
    pytest.importorskip("pytest_randomly")
    project.makepyfile(TEST)
    reports = []
    for seed in (1, 2):
        name = f"{seed}.json"
        result = project.runpytest(f"--wm-json={name}", f"--randomly-seed={seed}")
        result.assert_outcomes(passed=1, failed=1)
        data = json.loads((project.path / name).read_text("utf-8"))
        reports.append(sorted(data["reports"], key=lambda report: report["model"]))
    assert reports[0] == reports[1]


def test_a_pass_warns_of_what_it_stands_on(project, distribution):
    project.makepyfile(
        """
        import pytest_watermark_guard as wm
        from shop import Blind

        class Undeclared(Blind):
            preprocessing = None

        def test_it():
            wm.assert_not_watermark_sensitive(Undeclared())

        def test_said():
            wm.assert_not_watermark_sensitive(Undeclared(), preprocess="imagenet")
        """
    )
    result = project.runpytest(*distribution)
    result.assert_outcomes(passed=2, warnings=1)
    told = "*AssumptionWarning: Undeclared: preprocessing is assumed: ImageNet, 224 px; pass *"
    result.stdout.fnmatch_lines(["*test_a_pass_warns*.py:*", told])
    strict = project.runpytest("-Werror::pytest_watermark_guard.errors.AssumptionWarning")
    strict.assert_outcomes(passed=1, failed=1)


def test_predictions_are_gated_instead_of_d(project):
    project.makepyfile(
        """
        import pytest_watermark_guard as wm
        from shop import blind, sensitive

        def test_sensitive():
            wm.assert_not_watermark_sensitive(sensitive(), max_flips=0.05)

        def test_blind():
            wm.assert_not_watermark_sensitive(blind(), max_flips=0.2)
        """
    )
    project.runpytest().assert_outcomes(passed=1, failed=1)
    result = project.runpytest("--wm-model=shop:sensitive", "--wm-max-flips=0.05")
    result.assert_outcomes(failed=2)  # one for each scenario, of the logits alone
    result.stdout.fnmatch_lines(["*chinese marks change * of the predictions beyond blobs of ink*"])
    wrong = project.runpytest("--wm-model=shop:blind", "--wm-max-drop=1")
    wrong.stdout.fnmatch_lines(["*max_drop: no label is known of the images*"])
