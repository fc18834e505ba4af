from __future__ import annotations

import json

import pytest

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.plugin.mask_marker import MaskRequest

BACKBONE = """
    import pytest, torch, shop
    import pytest_watermark_guard as wm

    @pytest.fixture
    def backbone():
        return shop.sensitive()
"""


def shared(scope):
    return BACKBONE.replace("@pytest.fixture\n", f"@pytest.fixture(scope={scope!r})\n")


@pytest.fixture
def masks(project):
    """The masks of a run with --wm-json=wm.json."""
    return lambda: json.loads((project.path / "wm.json").read_text("utf-8"))["masks"]


def test_the_test_and_its_fixtures_get_the_masked_model(project, distribution, masks):
    project.makepyfile(
        BACKBONE
        + """
    @pytest.fixture
    def features_with_ink(backbone):
        photo = torch.zeros(1, 3, 224, 224)
        photo[..., 100:, 100:] = 1
        return wm.extract_features(backbone, photo)[0]

    @pytest.mark.wm_mask(fraction=0.3)
    def test_masked(features_with_ink, backbone, wm_mask):
        assert wm_mask.units == (2,)
        assert wm.applied_mask(backbone) is wm_mask
        assert features_with_ink[1] > 0.1 and features_with_ink[2] == 0
        backbone.fc = torch.nn.Linear(3, 5)
        wm.assert_not_watermark_sensitive(backbone)

    def test_plain(features_with_ink, backbone):
        assert features_with_ink[2] == 1
        wm.assert_not_watermark_sensitive(backbone)
    """
    )
    result = project.runpytest("--wm-report", "--wm-json=wm.json", *distribution)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E *Sensitive is watermark-sensitive: *",
            "Masked features",
            "test_the_test_and_its_fixtures_get_the_masked_model.py::test_masked",
            "features of Sensitive, changed at the input of 'fc'",
            "*fixture *method *taken out *scenario *max d *after",
            "*backbone *mask *1 of 3 units *chinese *1.000 *0.*",
        ]
    )
    (mask,) = masks()
    assert mask["units"] == [2]
    # By the reports, which came from models of their own.
    reports = json.loads((project.path / "wm.json").read_text("utf-8"))["reports"]
    (evidence,) = [r for r in reports if not r["gates"]]
    (scores,) = evidence["scores"]
    assert (scores["layer"], scores["scenario"]) == ("features", "chinese")
    left = [max(a, 1 - a) for a in scores["auroc"][:2]]
    assert mask["falls"] == [{"scenario": "chinese", "before": 1.0, "after": max(left)}]


@pytest.mark.parametrize("scope", ["class", "module", "session"])
@pytest.mark.parametrize("ending", ["assert True", "assert False"])
def test_nothing_of_it_is_left_for_other_tests(project, scope, ending):
    project.makepyfile(
        shared(scope)
        + f"""
    class TestThem:
        seen = []

        @pytest.fixture
        def looked_at(self, backbone):
            state = {{name: t.clone() for name, t in backbone.state_dict().items()}}
            parts = [(name, id(part), part.training) for name, part in backbone.named_modules()]
            hooks = [dict(part._forward_pre_hooks) for part in backbone.modules()]
            flags = [(id(p), p.requires_grad, p.grad) for p in backbone.parameters()]
            self.seen.append((id(backbone), state, parts, hooks, flags, sorted(vars(backbone))))

        def test_1_before(self, looked_at):
            pass

        @pytest.mark.wm_mask(units=[1, 2])
        def test_2_wild(self, backbone):
            assert self.seen[0][0] == id(backbone)
            assert wm.applied_mask(backbone).units == (1, 2)
            old, backbone.fc = backbone.fc, torch.nn.Linear(3, 4)
            backbone.eval()
            optimizer = torch.optim.SGD([*old.parameters(), *backbone.parameters()], lr=0.5)
            (backbone(torch.rand(2, 3, 224, 224)).sum() + old.weight.sum()).backward()
            optimizer.step()
            old.requires_grad_(False)
            backbone.extra = 1
            backbone.register_buffer("late", torch.ones(1))
            backbone.fc.register_forward_pre_hook(lambda module, args: None)
            old.register_forward_pre_hook(lambda module, args: None)
            {ending}

        def test_3_after(self, looked_at, backbone):
            before, after = self.seen
            assert list(before[1]) == list(after[1])
            assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
            assert before[0] == after[0] and before[2:] == after[2:]
            assert wm.applied_mask(backbone) is None
            backbone.fc = torch.nn.Linear(5, 1)  # a masked model would not take it
    """
    )
    result = project.runpytest("-p", "no:randomly")
    result.assert_outcomes(**({"passed": 3} if "True" in ending else {"passed": 2, "failed": 1}))


def test_the_closest_marker_wins(project):
    project.makepyfile(
        BACKBONE
        + """
    pytestmark = pytest.mark.wm_mask(units=[0])

    def test_module(wm_mask, backbone):
        assert wm_mask.units == (0,)

    @pytest.mark.wm_mask(units=[1])
    class TestIt:
        def test_class(self, wm_mask, backbone):
            assert wm_mask.units == (1,)

        @pytest.mark.wm_mask(threshold=0.9, scenarios="latin")
        def test_function(self, wm_mask, backbone):
            assert wm_mask.units == (2,)
            assert "latin" in wm_mask.description
    """
    )
    project.runpytest().assert_outcomes(passed=3)


def test_parametrised_fixtures_and_tests(project, distribution, masks):
    project.makepyfile(
        """
        import pytest, shop
        import pytest_watermark_guard as wm

        @pytest.fixture(scope="module", params=["sensitive", "blind"])
        def net(request):
            return getattr(shop, request.param)()

        @pytest.mark.parametrize("n", [1, 2])
        @pytest.mark.wm_mask(threshold=0.9, fixture="net")
        def test_it(n, net, wm_mask):
            assert wm_mask.units == ((2,) if type(net) is shop.Sensitive else ())

        @pytest.mark.parametrize(
            "masked", [False, pytest.param(True, marks=pytest.mark.wm_mask(fixture="net"))]
        )
        def test_some_cases_only(net, masked):
            assert (wm.applied_mask(net) is not None) == masked

        @pytest.mark.parametrize("model", [shop.sensitive()])
        @pytest.mark.wm_mask(fixture="model")
        def test_direct(model):
            assert wm.applied_mask(model) is not None
        """
    )
    result = project.runpytest("--wm-json=wm.json", *distribution)
    result.assert_outcomes(passed=9)
    assert len(masks()) == 7


def test_fixtures_keep_their_order_but_for_those_that_need_the_model(project):
    project.makepyfile(
        BACKBONE
        + """
    ORDER = []

    @pytest.fixture(autouse=True, scope="session")
    def environment():
        ORDER.append("environment")

    @pytest.fixture(autouse=True)
    def first():
        ORDER.append("first")

    @pytest.fixture(autouse=True)
    def trainer(backbone):
        ORDER.append(("trainer", wm.applied_mask(backbone) is not None))

    @pytest.fixture
    def backbone():
        ORDER.append("backbone")
        return shop.sensitive()

    @pytest.mark.wm_mask()
    def test_it(backbone):
        assert ORDER == ["environment", "first", "backbone", ("trainer", True)]
    """
    )
    project.runpytest().assert_outcomes(passed=1)


def test_a_fixture_that_overrides_another(project):
    project.makeconftest(BACKBONE)
    project.makepyfile(
        """
        import pytest, shop
        import pytest_watermark_guard as wm

        @pytest.fixture(scope="module")
        def unrelated():
            return 1

        @pytest.fixture
        def backbone(backbone):
            assert wm.applied_mask(backbone) is None
            return backbone.eval()

        @pytest.mark.usefixtures("backbone", "unrelated")
        @pytest.mark.wm_mask
        def test_it(request):
            assert wm.applied_mask(request.getfixturevalue("backbone")) is not None
        """
    )
    project.runpytest().assert_outcomes(passed=1)


def test_async_tests(project):
    pytest.importorskip("anyio")
    project.makepyfile(
        BACKBONE
        + """
    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    @pytest.fixture
    async def net():
        return shop.sensitive()

    @pytest.mark.anyio
    @pytest.mark.wm_mask(threshold=0.9)
    async def test_model_of_a_plain_fixture(backbone, wm_mask):
        assert wm.applied_mask(backbone) is wm_mask

    @pytest.mark.anyio
    @pytest.mark.wm_mask(threshold=0.9, fixture="net")
    async def test_model_of_an_async_fixture(net):
        assert wm.applied_mask(net).units == (2,)
    """
    )
    result = project.runpytest("-p", "anyio")
    result.assert_outcomes(passed=2)


def test_unittest_and_a_class_scoped_fixture(project):
    project.makepyfile(
        shared("class")
        + """
    import unittest

    class TestPlain:
        @pytest.fixture(scope="class")
        def net(self):
            return shop.sensitive()

        @pytest.mark.wm_mask(fixture="net")
        def test_masked(self, net):
            assert wm.applied_mask(net) is not None

        def test_not(self, net):
            assert wm.applied_mask(net) is None

    @pytest.mark.usefixtures("backbone")
    class TestCase(unittest.TestCase):
        @pytest.mark.wm_mask()
        def test_it(self):
            pass
    """
    )
    project.runpytest().assert_outcomes(passed=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("0.1", "takes keyword arguments only: wm_mask(fraction=0.01, *"),
        ("fractoin=0.1", "unknown argument 'fractoin'; known are fraction, threshold, units, *"),
        ("fraction=1.5", "fraction must be a number in [[]0, 1], got 1.5"),
        ("scenarios=('klingon',)", "unknown scenario 'klingon'*"),
        ("fixture='net'", "the test uses no fixture 'net'*; it uses backbone. Name one by *"),
    ],
)
def test_wrong_arguments_are_usage_errors(project, arguments, message):
    project.makepyfile(
        BACKBONE
        + f"""
    @pytest.mark.wm_mask({arguments})
    def test_it(backbone):
        pass
    """
    )
    result = project.runpytest("--collect-only")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *::test_it: @pytest.mark.wm_mask: {message}"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": -0.1}, "fraction must be a number in"),
        ({"fraction": float("nan")}, "fraction must be a number in"),
        ({"fraction": True}, "fraction must be a number in"),
        ({"fraction": "half"}, "fraction must be a number in"),
        ({"threshold": 0.5}, "threshold must be a number in"),
        ({"units": [1, 1]}, "units must be different indices"),
        ({"units": [-1]}, "units must be different indices"),
        ({"units": [0.5]}, "units must be different indices"),
        ({"units": "12"}, "units must be different indices"),
        ({"units": ()}, "units must be different indices"),
        ({"fraction": 0.1, "units": [1]}, "fraction and units: each is a rule of its own"),
        ({"method": "erase", "threshold": 0.8}, "threshold chooses units to mask"),
        ({"method": "erase", "fraction": 0.01}, "fraction chooses units to mask"),
        ({"method": "shuffle"}, "method must be one of mask, erase, got 'shuffle'"),
        ({"method": ["mask"]}, "method must be one of mask, erase"),
        ({"fixture": 5}, "fixture must be a fixture's name, got 5"),
        ({"fixture": ""}, "fixture must be a fixture's name, got ''"),
    ],
)
def test_wrong_values(arguments, message):
    with pytest.raises(SettingsError, match=message):
        MaskRequest(**arguments)


def test_the_default_is_the_paper_s_one_per_cent():
    assert MaskRequest().rule == {"fraction": 0.01}
    assert MaskRequest(units=range(2)).rule == {"units": (0, 1)}
    assert MaskRequest(method="erase").rule == {}
    assert MaskRequest(scenarios="latin").scenarios == ("latin",)


def test_workers_tell_of_a_wrong_marker_too(project):
    pytest.importorskip("xdist")
    project.makepyfile(
        BACKBONE
        + """
    @pytest.mark.wm_mask(fraction=2)
    def test_wrong(backbone):
        pass

    @pytest.mark.wm_mask()
    def test_right(backbone):
        pass
    """
    )
    result = project.runpytest("-n2")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*test_wrong: @pytest.mark.wm_mask: fraction must be*"])


def test_a_wider_fixture_made_from_the_model_is_a_usage_error(project):
    project.makepyfile(
        shared("session")
        + """
    @pytest.fixture(scope="class")
    def features(backbone):
        return wm.extract_features(backbone, torch.rand(2, 3, 224, 224))

    @pytest.fixture
    def labels(features):
        return [0, 1]

    @pytest.mark.wm_mask()
    def test_it(backbone, labels):
        pass
    """
    )
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: *test_it: @pytest.mark.wm_mask: fixture 'features' lives for a whole class and "
            "is made from 'backbone'*Give 'features' the scope 'function', or use wm.apply_mask*"
        ]
    )


@pytest.mark.parametrize(
    ("model", "message", "code"),
    [
        ("'res'", "*fixture 'backbone' gave a str, and only a torch.nn.Module can be masked*", 6),
        ("wm.apply_mask(shop.sensitive(), wm.FeatureMask((0,), 3))", "*carries a mask already*", 6),
        ("shop.sensitive().double().fill()", "*has no attribute 'fill'*", 1),
    ],
)
def test_what_cannot_be_masked_is_an_error_of_that_test(project, model, message, code):
    project.makepyfile(
        BACKBONE.replace("shop.sensitive()", model)
        + """
    @pytest.mark.wm_mask()
    def test_it(backbone):
        pass
    """
    )
    result = project.runpytest("--wm-report")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*masking.py*")
    result.stdout.no_fnmatch_line("Masked features")
    result.stdout.no_fnmatch_line("*direct cause*")  # told once
    assert result.ret == code


def test_a_unit_that_the_model_does_not_have(project):
    project.makepyfile(
        BACKBONE
        + """
    @pytest.mark.wm_mask(units=[3])
    def test_it(backbone):
        pass
    """
    )
    result = project.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.wm_mask: units: 3 is no index of the 3 features"])


def test_the_fixture_without_the_marker(project):
    project.makepyfile("def test_it(wm_mask): pass")
    result = project.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*wm_mask tells what @pytest.mark.wm_mask has masked*no such marker"]
    )


def test_a_marker_that_a_conftest_adds(project):
    project.makeconftest(
        """
        import pytest

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.wm_mask(fraction=0.3))
        """
    )
    project.makepyfile(
        BACKBONE
        + """
    def test_it(backbone):
        assert wm.applied_mask(backbone).units == (2,)
    """
    )
    project.runpytest().assert_outcomes(passed=1)


def test_the_probe_goes_by_the_settings_of_the_test(project):
    project.makepyfile(
        BACKBONE
        + """
    @pytest.mark.wm_settings(max_images=5, scenarios=("latin",))
    @pytest.mark.wm_mask(scenarios=("chinese", "latin"))
    def test_it(wm_mask, backbone):
        assert "under chinese, latin, probed with 5 images" in wm_mask.description
    """
    )
    result = project.runpytest("--wm-report")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 of 3 units *chinese *1.000*", "*1 of 3 units *latin *1.000*"])


def test_reruns_mask_anew_and_are_told_once(project, masks):
    project.makepyfile(
        shared("module")
        + """
    RUNS = []

    @pytest.mark.wm_mask(fraction=0.3)
    def test_it(backbone):
        RUNS.append(wm.applied_mask(backbone).units)
        backbone.fc = torch.nn.Linear(3, 7)
        assert RUNS == [(2,), (2,)]
    """
    )
    result = project.runpytest("--wm-json=wm.json", "--reruns", "1", "-p", "rerunfailures")
    assert "1 passed, 1 rerun" in result.stdout.str()
    assert len(masks()) == 1


def test_erasure(project, masks):
    pytest.importorskip("concept_erasure")
    project.makepyfile(
        shared("session")
        + """
    @pytest.mark.wm_mask(method="erase", scenarios=("chinese", "latin"))
    def test_it(backbone, wm_mask):
        assert wm_mask.scenarios == ("chinese", "latin")
        report = wm.probe(backbone)
        assert max(scores.differentiability.max() for scores in report) < 0.7

    def test_plain(backbone):
        assert wm.probe(backbone)["features", "chinese"].auroc[2] == 1
    """
    )
    result = project.runpytest("--wm-report", "--wm-json=wm.json")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*backbone *erase *of 3 dims *chinese *1.000 *0.[56]*"])
    (mask,) = masks()
    assert (mask["units"], mask["width"]) == ([], 3)
    assert 1 <= mask["directions"] <= 2


def test_without_terminal_and_cache(project, masks):
    project.makepyfile(
        BACKBONE
        + """
    @pytest.mark.wm_mask()
    def test_it(backbone):
        pass
    """
    )
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", "--wm-no-cache"]
    result = project.runpytest(*options, "--wm-json=wm.json")
    assert result.ret == 0
    assert len(masks()) == 1


def test_it_is_in_the_markers_help(project):
    project.runpytest("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.wm_mask(fraction=0.01, scenarios=('chinese',), fixture='backbone', *"]
    )
    project.runpytest("--fixtures").stdout.fnmatch_lines(["wm_mask*"])


def test_setup_is_planned_without_a_model(project):
    project.makepyfile(
        BACKBONE.replace("shop.sensitive()", "1 / 0")
        + """
    @pytest.mark.wm_mask()
    def test_it(backbone):
        pass
    """
    )
    result = project.runpytest("--setup-plan")
    result.stdout.fnmatch_lines(["*SETUP *wm_mask*", "*SETUP *backbone*", "*test_it*"])
    result.stdout.no_fnmatch_line("*ZeroDivisionError*")
