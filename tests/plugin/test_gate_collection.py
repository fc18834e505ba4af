"""Gates of models are collected, chosen and counted as any test is."""

from __future__ import annotations

import os

import pytest

MODEL = "--wm-model=shop:sensitive"
NAMES = [f"{layer}-{script}" for layer in ("logits", "features") for script in ("chinese", "latin")]


@pytest.fixture
def configured(project):
    """A project whose ini file names a model, with two tests of its own."""
    project.makepyfile(test_other="def test_one(): pass\n\ndef test_two(): pass")
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\nwm_model =\n  shop:blind\n")
    return project


class Tree:
    """What was collected, as an editor's plugin sees it."""

    def pytest_collection_finish(self, session):
        self.root = session.path
        self.items = session.items


def ids(project, *arguments):
    """Return the ids that a run collects."""
    tree = Tree()
    result = project.inline_run("--collect-only", "-pno:randomly", *arguments, plugins=[tree])
    assert result.ret in (0, 5)
    return [item.nodeid for item in tree.items]


def every(*names, spec="shop:blind"):
    return [f"{spec}::{name}" for name in names or NAMES]


TESTS = ["test_other.py::test_one", "test_other.py::test_two"]


def test_they_are_counted_where_they_are_collected(project):
    result = project.runpytest(MODEL, "--collect-only")
    result.stdout.fnmatch_lines(
        ["collected 4 items", "<ModelGate shop:sensitive>", "  <GateItem logits-chinese>"]
    )
    result = project.runpytest(MODEL, "-k", "latin", "--collect-only")
    result.stdout.fnmatch_lines(["collected 4 items / 2 deselected / 2 selected"])
    result = project.runpytest(MODEL, "-k", "nothing")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["collected 4 items / 4 deselected / 0 selected"])


@pytest.mark.parametrize(
    "start", ["shop:blind", "{path}/shop:blind", "./shop:blind"], ids=["id", "path", "here"]
)
def test_an_id_chooses_its_gate(project, start):
    argument = f"{start.format(path=project.path)}::features-latin"
    assert ids(project, "--wm-model=shop:blind", argument) == every("features-latin")


def test_several_ids_choose_several(configured):
    wanted = ["shop:blind::features-latin", "shop:blind::logits-latin", TESTS[1]]
    assert ids(configured, *wanted) == [TESTS[1], *every("logits-latin", "features-latin")]
    assert ids(configured, "shop:blind") == every()
    configured.runpytest(*wanted).assert_outcomes(passed=3)


def test_ids_with_whatever_is_in_them(project):
    project.makeconftest(
        """
        import pytest_watermark_guard as wm

        def pytest_wm_scenarios(config):
            return [wm.Scenario("stock [v2]", "S", length=2)]
        """
    )
    folder = project.mkdir("nets")
    options = ["--wm-scenarios=stock [v2],latin", "--wm-layers=layer4.1", f"--wm-model={folder}"]
    options[2] += "/net[1].pt2"
    collected = ids(project, *options)
    assert collected == [
        f"{folder}/net[1].pt2::layer4.1-{name}" for name in ("stock [v2]", "latin")
    ]
    for each in collected:
        assert ids(project, *options, each) == [each]


def test_an_id_as_it_is_shown_in_a_subfolder(configured):
    configured.makepyfile(**{"sub/test_sub": "def test_sub(): pass"})
    os.chdir(configured.path / "sub")
    result = configured.runpytest("../shop:blind::logits-latin", "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["../shop:blind::logits-latin PASSED*"])


def test_an_id_that_no_gate_has(project):
    result = project.runpytest("--wm-model=shop:blind", "shop:blind::logits-latn")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'logits-latn'; did you mean 'logits-latin'?"])
    result = project.runpytest("--wm-model=shop:blind", "shop:sensitive::logits-latin")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: file or directory not found: shop:sensitive::*"])


@pytest.mark.parametrize(
    ("arguments", "gates", "said"),
    [
        ([], True, "gating shop:blind"),
        (["."], True, "gating shop:blind"),
        (["test_other.py"], False, "not gating shop:blind: single files are named"),
        (["--wm-model=shop:blind", "test_other.py"], True, "gating shop:blind"),
    ],
)
def test_paths_choose_tests(configured, arguments, gates, said):
    assert ids(configured, *arguments) == TESTS + every() * gates
    result = configured.runpytest("--collect-only", *arguments)
    result.stdout.fnmatch_lines([f"watermark guard: {said}"])


@pytest.mark.parametrize("options", [[], ["--wm-model=shop:blind"]], ids=["ini", "typed"])
def test_choosing_one_test_runs_no_gate(configured, options):
    assert ids(configured, *options, TESTS[0]) == TESTS[:1]
    configured.runpytest(*options, TESTS[0]).assert_outcomes(passed=1)


def test_deselected_by_id(configured):
    assert ids(configured, "--deselect=shop:blind") == TESTS
    assert ids(configured, "--deselect=shop:blind::logits-chinese") == TESTS + every(*NAMES[1:])


@pytest.mark.parametrize("options", [["-pno:xdist"], ["-n2"]], ids=["no xdist", "n2"])
def test_last_failed(project, options):
    if options == ["-n2"]:
        pytest.importorskip("xdist")
    project.makepyfile(test_other="def test_other(): pass")
    project.runpytest(MODEL, "test_other.py", "-k", "other or latin", *options)
    result = project.runpytest(MODEL, "test_other.py", "--lf")
    result.assert_outcomes(failed=2, deselected=3)
    result.stdout.fnmatch_lines(["run-last-failure: rerun previous 2 failures*"])


@pytest.mark.parametrize("option", ["--nf", "--ff"])
def test_in_another_order(configured, option):
    for _ in range(2):
        assert sorted(ids(configured, option)) == sorted(TESTS + every())


def test_new_tests_first_without_an_ini_file(project):
    project.makepyfile(test_other="def test_one(): pass\n\ndef test_two(): pass")
    (project.path / "tox.ini").unlink()
    found = ids(project, "--nf", MODEL, "--wm-images=photos", ".")
    assert set(TESTS) < set(found)


def test_stepwise(project):
    options = [MODEL, "--sw", "-pno:randomly"]
    project.runpytest(*options).assert_outcomes(failed=1)
    options += ["--wm-allow=logits:1=known", "--wm-early-stop=0"]
    project.runpytest(*options).assert_outcomes(passed=2, failed=1)
    project.runpytest(*options).assert_outcomes(failed=1, deselected=2)


def test_hooks_of_the_root_conftest_see_them(project):
    project.makeconftest(
        """
        def pytest_itemcollected(item):
            item.user_properties.append(("seen", True))

        def pytest_runtest_setup(item):
            assert ("seen", True) in item.user_properties
            print("set up", item.name)
        """
    )
    result = project.runpytest("--wm-model=shop:blind", "-k", "logits-latin", "-s")
    result.assert_outcomes(passed=1, deselected=3)
    result.stdout.fnmatch_lines(["*set up logits-latin*"])


def test_editors_can_draw_their_tree(configured):
    specs = ["shop:blind", "nets/net.pt2", "/data/net.pt2", "../net.pt2", "torchvision:resnet18"]
    specs += ["torchvision:resnet18?weights=../../x/y.safetensors"]
    tree = Tree()
    models = [f"--wm-model={spec}" for spec in specs]
    assert configured.inline_run("--collect-only", ".", *models, plugins=[tree]).ret == 0
    # They hang each test below its parent's path, and walk up from there to the root.
    gates = [item for item in tree.items if item.name in NAMES]
    assert len(gates) == 4 * len(specs)
    assert all(tree.root in item.parent.path.parents for item in gates)
    assert all(item.path == item.parent.path for item in gates)
    # What they run is the path, and of the id what follows the first "::".
    runs = [f"{item.path}::{item.nodeid.split('::', 1)[1]}" for item in gates]
    assert len(set(runs)) == len(gates)
    for item, run in zip(gates, runs, strict=True):
        assert ids(configured, *models, run) == [item.nodeid]


@pytest.mark.parametrize(
    "lines",
    [
        ["wm_device = cuda:99"],
        ["wm_model = resnet18"],
        ["wm_model = no.onnx"],
        ["wm_against = no.json"],
        ["wm_against = ~nobody-of-this-name/x"],
        ["wm_json = ~nobody-of-this-name/x"],
        ["wm_known = ~nobody-of-this-name/x"],
        ["wm_known = no.toml"],
        ["wm_no_worse = true"],
        ["wm_html = tox.ini/page.html"],
    ],
    ids=lambda lines: lines[0],
)
def test_nothing_in_an_ini_file_stops_an_editor_from_collecting(project, lines):
    project.makepyfile(test_other="def test_one(): pass\n\ndef test_two(): pass")
    with (project.path / "tox.ini").open("a") as ini:
        ini.write("\n" + "\n".join(lines))
    (project.path / "wm-known-units.toml").write_text("damaged")
    assert ids(project)[:2] == TESTS
