"""Wrong options are found before anything is loaded; wrong calls show the user's line."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def noisy(project):
    """A model that says when it is loaded."""
    project.makepyfile(noisy="import shop\nprint('LOADED')\nbuild = shop.Blind")
    return project


def write_ini(project, line):
    """Put a line into the ini file, instead of another of that name."""
    name = line.partition(" ")[0]
    path = project.path / "tox.ini"
    kept = [other for other in path.read_text().splitlines() if not other.startswith(name)]
    path.write_text("\n".join([*kept, line]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--wm-images=nowhere"], "images: *nowhere' is not a folder*"),
        (["--wm-device=cuda:99"], "device 'cuda:99' cannot be used: *"),
        (["--wm-device=cdua"], "device 'cdua' cannot be used: *"),
        (["--wm-scenarios=chinse"], "unknown scenario 'chinse'*; did you mean 'chinese'?*"),
        (["--wm-precision=floot32"], "precision must be *, got 'floot32'; did you mean 'float32'?"),
        (["--wm-model=no.onnx"], "model spec 'no.onnx': there is no file 'no.onnx'"),
        (["--wm-model=shop:blind?weights=no.pt"], "weights file 'no.pt' does not exist"),
        (["--wm-model=torchvision:resnt18"], "*did you mean *resnet18*"),
        (["--wm-model=torchvision:resnet18@IMAGENET1K_V9"], "*did you mean IMAGENET1K_V1*"),
        (["--wm-model=resnet18"], "*did you mean torchvision:resnet18 or *"),
        (["--wm-model=torchvision:resnet18?weigths=x.pt"], "*did you mean 'weights'?*"),
    ],
)
def test_what_cannot_work_is_said_once_and_before_anything_is_loaded(noisy, options, message):
    result = noisy.runpytest("--wm-model=noisy:build", "-s", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    (told,) = [line for line in result.errlines if line]
    result.stderr.fnmatch_lines([f"ERROR: watermark guard: {message}"])
    assert told.startswith("ERROR: ")
    result.stdout.no_fnmatch_line("*LOADED*")


@pytest.mark.parametrize("line", ["wm_images = nowhere", "wm_device = cuda:99"])
def test_what_an_ini_file_names_may_be_missing_where_nothing_is_gated(project, line):
    write_ini(project, line)
    project.makepyfile("def test_it(): pass")
    project.runpytest().assert_outcomes(passed=1)


HOMELESS = "~nobody-of-this-name/file"


@pytest.mark.parametrize("name", ["images", "json", "html", "known", "against"])
@pytest.mark.parametrize("where", ["option", "ini"])
def test_a_home_that_nobody_has(project, name, where):
    options = [f"--wm-{name}={HOMELESS}"] * (where == "option")
    if where == "ini":
        write_ini(project, f"wm_{name} = {HOMELESS}")
    result = project.runpytest("--wm-model=shop:blind", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: watermark guard: {name}: {HOMELESS!r} begins with the home folder of a user*"]
    )
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_key_in_a_home_that_nobody_has(project):
    project.makepyfile("def test_it(wm_key): pass")
    result = project.runpytest(f"--wm-key={HOMELESS}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"E *key: {HOMELESS!r} begins with the home folder of a user*"])


@pytest.mark.parametrize("spec", ["{}.onnx", "torchvision:resnet18?weights={}.pt"])
def test_a_model_in_a_home_that_nobody_has(project, spec):
    result = project.runpytest(f"--wm-model={spec.format(HOMELESS)}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*home folder of a user*"])


def test_a_model_that_cannot_be_had_is_explained_once(project):
    options = ["--wm-model=shop:blnd", "--wm-model=shop:blind", "--wm-json=run.json"]
    result = project.runpytest(*options, "-rN")
    result.assert_outcomes(errors=4, passed=4)
    assert result.ret == 6
    text = result.stdout.str()
    assert text.count("has no attribute 'blnd'; did you mean blind?") == 1
    failures = json.loads((project.path / "run.json").read_text("utf-8"))["failures"]
    assert [*failures] == ["shop:blnd"]


CALLS = {
    'wm.probe(shop.blind(), scenario="chinese")': "did you mean 'scenarios'?",
    'wm.probe(shop.blind(), scenarios=["chinse"])': "did you mean 'chinese'?",
    'wm.probe(shop.blind(), layers=["logit"])': "did you mean 'logits'?",
    'wm_guard.probe(shop.blind(), layers=["fcc"])': "did you mean 'fc'?",
    'wm_guard.check(shop.blind(), device="cdua")': "device 'cdua' cannot be used",
    "wm_guard.check(shop.blind(), threshhold=0.9)": "did you mean 'threshold'?",
    'wm.assert_not_watermark_sensitive("resnet18")': "did you mean torchvision:resnet18 or ",
    'wm.assert_not_watermark_sensitive("torchvison:resnet18")': "did you mean 'torchvision'?",
    'wm.probe(shop.blind(), images="~nobody-of-this-name/x")': "home folder of a user",
    "wm.assert_not_watermark_sensitive(shop.sensitive())": "Sensitive is watermark-sensitive",
    "wm.probe(Picky())": "Picky raised RuntimeError: one channel",
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_shows_its_line_and_no_frame_of_ours(project, call):
    path = project.makepyfile(
        f"""
        import shop
        import pytest_watermark_guard as wm

        class Picky(shop.Blind):
            def forward(self, x):
                raise RuntimeError("one channel")

        def test_it(wm_guard):
            {call}
        """
    )
    result = project.runpytest("--tb=long")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*>*{call.replace('[', '?')}*", f"E *{CALLS[call]}*"])
    line = path.read_text().splitlines().index(f"    {call}") + 1
    result.stdout.fnmatch_lines([f"{path.name}:{line}: *"])
    result.stdout.no_fnmatch_line("*pytest_watermark_guard/*.py:*")
    result.stdout.no_fnmatch_line("*contextlib.py:*")


def test_so_does_a_fixture(project):
    project.makepyfile(
        """
        import pytest
        import shop

        @pytest.fixture
        def report(wm_guard):
            return wm_guard.probe(shop.blind(), scenarios=["chinse"])

        def test_it(report):
            pass
        """
    )
    result = project.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(['*>*scenarios=?"chinse"?*'])
    result.stdout.no_fnmatch_line("*pytest_watermark_guard/*.py:*")


def test_so_does_a_file_of_tests(project):
    path = project.makepyfile(
        """
        import pytest_watermark_guard as wm

        STOCK = wm.Scenario("stock", "S", position="centr")
        """
    )
    result = project.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"{path.name}:3: in <module>", "E *did you mean 'centre'?"])
    result.stdout.no_fnmatch_line("*pytest_watermark_guard/*.py:*")


def test_the_full_trace_is_full(project):
    project.makepyfile("import pytest_watermark_guard as wm\ndef test_it(): wm.probe('resnet18')")
    result = project.runpytest("--full-trace")
    result.stdout.fnmatch_lines(["*specs.py:*: ModelSpecError"])


def test_a_fault_of_ours_shows_our_frames(project, monkeypatch):
    from pytest_watermark_guard.probing import prepare

    monkeypatch.setattr(prepare, "open_for", None)
    project.makepyfile(
        """
        import shop
        import pytest_watermark_guard as wm

        def test_it():
            wm.probe(shop.blind())
        """
    )
    result = project.runpytest()
    result.stdout.fnmatch_lines(["*prepare.py:*: TypeError"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("wm_settings(scenario='chinese')", "*'scenario'*; did you mean 'scenarios'?"),
        ("wm_settings(scenarios='chinse')", "*did you mean 'chinese'?*"),
        ("wm_settings(inconclusive='passs')", "*did you mean 'pass'?"),
        ("wm_mask(fractoin=0.1)", "*'fractoin'*; did you mean 'fraction'?"),
        ("wm_mask(fixture='backbon')", "*did you mean 'backbone'?*"),
        ("wm_mask(method='earse')", "*did you mean 'erase'?"),
    ],
)
def test_wrong_words_in_a_marker(project, marker, message):
    project.makepyfile(
        f"""
        import pytest
        import shop

        @pytest.fixture
        def backbone():
            return shop.blind()

        @pytest.mark.{marker}
        def test_it(backbone):
            pass
        """
    )
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *::test_it: @pytest.mark.{message}"])


def test_files_that_begin_with_a_byte_order_mark(project):
    """As editors and shells on Windows write them."""
    project.runpytest("--wm-model=shop:sensitive", "--wm-update-known", "--wm-json=run.json")
    for name in ("wm-known-units.toml", "run.json"):
        path = project.path / name
        path.write_text(path.read_text("utf-8"), encoding="utf-8-sig")
    result = project.runpytest("--wm-model=shop:sensitive", "--wm-against=run.json")
    result.assert_outcomes(passed=4)
