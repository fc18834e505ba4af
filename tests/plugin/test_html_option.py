"""--wm-html"""

from __future__ import annotations

import pytest


def page_of(project, name="report.html"):
    return (project.path / name).read_text("utf-8")


def test_a_run_s_models_are_on_one_page(project, distribution):
    result = project.runpytest(
        *distribution,
        "--wm-model=shop:sensitive",
        "--wm-model=shop:blind",
        "--wm-model=shop:broken",
        "--wm-html=out/report.html",
    )
    result.stdout.fnmatch_lines(["*watermark guard: wrote *report.html"])
    page = page_of(project, "out/report.html")
    assert "1 of 2 models fails" in page
    assert "1 could not be probed" in page
    assert "no such bucket" in page
    assert "--wm-model=shop:sensitive --wm-model=shop:blind" in page
    # Images are drawn again here, whichever process probed.
    assert page.count("data:image/jpeg;base64,") > 10
    assert "cannot be shown" not in page


def test_by_the_ini_file(project):
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_html = found.html")
    project.makepyfile("import shop\ndef test_it(wm_guard): wm_guard.probe(shop.blind())")
    project.runpytest().assert_outcomes(passed=1)
    assert "Not watermark-sensitive" in page_of(project, "found.html")


def test_images_that_a_test_made_itself_cannot_be_found_again(project):
    project.makepyfile(
        """
        import numpy as np, shop

        def test_it(wm_guard):
            photos = np.random.default_rng(0).integers(0, 90, (8, 224, 224, 3), np.uint8)
            wm_guard.probe(shop.blind(), images=photos)
        """
    )
    project.runpytest("--wm-html=report.html").assert_outcomes(passed=1)
    assert "they came from memory or a Dataset" in page_of(project)


def test_a_run_without_probes_says_so(project):
    project.makepyfile("def test_it(): pass")
    project.runpytest("--wm-html=report.html").assert_outcomes(passed=1)
    assert "No probe was made" in page_of(project)


def test_what_cannot_be_written_is_a_usage_error(project):
    project.makepyfile("def test_it(): pass")
    result = project.runpytest(f"--wm-html={project.path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *html: cannot write*"])
