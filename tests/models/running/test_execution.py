"""How the model is run: the fastest way that agrees, and never at the model's expense."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.running import execution
from pytest_watermark_guard.probing.activation_cache import ActivationCache
from pytest_watermark_guard.statistics.auroc import paired_auroc

PHOTOS = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
SMALL = wm.Preprocessing(size=(32, 32))


class Layouts(nn.Module):
    """Takes its time on one memory format, and may compute something else on the other."""

    def __init__(self, slow_on=torch.contiguous_format, noise=0.0, picky=False):
        super().__init__()
        self.slow_on, self.noise, self.picky = slow_on, noise, picky
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        if self.slow_on and x.is_contiguous(memory_format=self.slow_on):
            time.sleep(0.001 * len(x))
        if self.picky:
            x = x.view(len(x), -1).view(x.shape)  # fails on channels last
        x = self.norm(self.stem(x)).relu().mean((2, 3))
        return self.fc(x + self.noise * last * torch.randn_like(x))


class Slow(Layouts):
    """Takes so many seconds for so many rows, however it is run."""

    def __init__(self, seconds):
        super().__init__(slow_on=None)
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds(len(x)))
        return super().forward(x)


@pytest.fixture(autouse=True)
def eager_to_try(monkeypatch):
    monkeypatch.setattr(execution, "_WORTH_TUNING", 0.0)


@pytest.fixture(autouse=True)
def without_bfloat16(monkeypatch):
    """Try the same ways on every machine, but where a test asks for more."""
    monkeypatch.setattr(execution, "_has_bfloat16", lambda device: False)


@pytest.fixture
def clock(monkeypatch):
    """Time passes while the model sleeps and not otherwise, however busy the machine."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(execution, "time", SimpleNamespace(perf_counter=lambda: now[0]))


def probe(model, **arguments):
    arguments = {"cache": False, "preprocess": SMALL, "seed": 5, **arguments}
    return wm.probe(model, PHOTOS, ("latin", "arabic_numerals"), **arguments)


def plain(model):
    return probe(model, precision="float32")


def test_the_faster_way_is_taken_and_gives_the_same_scores(clock):
    torch.manual_seed(0)
    model = Layouts()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report, expected = probe(model), plain(model)
    assert "channels last" in report.precision
    assert expected.precision == "float32"
    for scores in expected:
        np.testing.assert_allclose(
            report[scores.layer, scores.scenario].auroc, scores.auroc, atol=2e-3
        )
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert model.stem.weight.is_contiguous()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.fc._forward_pre_hooks
    assert model.training


@pytest.mark.parametrize(
    "model",
    [
        Layouts(slow_on=torch.channels_last),
        Layouts(noise=1.0),
        Layouts(picky=True),
    ],
    ids=["slower", "disagrees", "fails"],
)
def test_ways_that_are_no_good_are_not_taken(model, clock):
    report = probe(model)
    assert "channels last" not in report.precision
    expected = plain(model)
    np.testing.assert_allclose(
        report["logits", "latin"].auroc, expected["logits", "latin"].auroc, atol=2e-3
    )


def test_float32_is_the_same_to_the_bit():
    torch.manual_seed(0)
    model = Layouts()
    one, other = plain(model), plain(model)
    assert one.to_json() == other.to_json()


def test_a_model_that_cannot_be_copied_runs_as_it_is():
    class Single(Layouts):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is one of me")

    assert probe(Single()).precision == "float32"


def test_short_runs_are_not_worth_trying(monkeypatch):
    monkeypatch.setattr(execution, "_WORTH_TUNING", 1e9)
    assert probe(Layouts()).precision == "float32"


def test_what_counts_as_agreement_hardly_moves_a_score():
    z = np.linspace(-6, 6, 10_001)
    moved = stats.norm.cdf(z) - stats.norm.cdf(z / np.sqrt(1 + execution.AGREEMENT**2))
    assert 0.004 < np.abs(moved).max() < 0.005
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(2, 1000, 500)) + np.array([0, 1.2])[:, None, None]
    rough = exact + execution.AGREEMENT * rng.normal(size=exact.shape)
    off = np.abs(paired_auroc(*exact).auroc - paired_auroc(*rough).auroc)
    assert 0.005 < np.quantile(off, 0.99) < 0.01


def test_the_fastest_way_is_remembered(clock, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = Layouts()
    first = probe(model, cache=True)
    monkeypatch.setattr(execution.Executor, "_variants", lambda *_: pytest.fail("tried again"))
    # Another subset is not known yet, the model is.
    second = probe(model, cache=True, max_images=250)
    assert second.precision == first.precision
    assert "channels last" in second.precision


def test_a_remembered_way_that_is_no_good_any_more_is_replaced(clock, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    wrong = execution.Plan(4, channels_last=True)
    monkeypatch.setattr(ActivationCache, "plan", lambda _: wrong)
    kept = []
    monkeypatch.setattr(ActivationCache, "remember", lambda _, plan: kept.append(plan))
    report = probe(Layouts(slow_on=None, picky=True), cache=True)
    assert report.precision.startswith("float32")
    assert len(kept) == 1
    assert not kept[0].channels_last


def test_what_is_best_without_bfloat16_is_not_remembered(clock, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    model = Layouts()
    wm.probe(model, PHOTOS, ("hindi",), preprocess=SMALL, seed=5)
    fast = execution.Plan(4, "bfloat16", channels_last=True)
    monkeypatch.setattr(ActivationCache, "plan", lambda _: fast)
    monkeypatch.setattr(ActivationCache, "remember", lambda *_: pytest.fail("remembered"))
    # The photos without a mark are known in float32: so must be what is compared with them.
    assert "channels last" in probe(model, cache=True).precision


def test_units_that_only_see_marks_must_agree_as_well(clock):
    class Ink(Layouts):
        def forward(self, x):
            last = x.is_contiguous(memory_format=torch.channels_last)
            ink = (x.amin(1).amax((1, 2)) - 0.6).relu()
            noise = ink * last * torch.randn_like(ink)
            return super().forward(x) + noise[:, None] * torch.tensor([0.0, 0.0, 1e4])

    dark = PHOTOS // 2
    blank = wm.Preprocessing(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    report = wm.probe(Ink(), dark, ("latin",), preprocess=blank, cache=False)
    assert "channels last" not in report.precision


class Casting(Layouts):
    """Cannot be run with weights in another precision."""

    def forward(self, x):
        return super().forward(x.float())


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("kind", [Layouts, Casting])
def test_bfloat16_where_the_hardware_has_it(clock, monkeypatch, kind, folds):
    """On hardware without it the speed is beside the point: it must be tried, and agree."""
    monkeypatch.setattr(execution, "_has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    model = kind()
    if not folds:
        model.norm = nn.Identity()
    report, expected = probe(model), plain(model)
    ways = ["bfloat16 weights" if kind is Layouts else "bfloat16"]
    ways += ["batch norm folded"] * folds + ["channels last"]
    ways += ["activations fused"] * (kind is Layouts and torch.backends.mkldnn.is_available())
    assert report.precision == ", ".join(ways)
    np.testing.assert_allclose(
        report["logits", "latin"].auroc, expected["logits", "latin"].auroc, atol=0.01
    )


def test_a_report_says_when_some_images_were_run_in_bfloat16(clock, monkeypatch):
    class Slower(Layouts):
        def forward(self, x):
            if self.stem.weight.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu"):
                time.sleep(0.01 * len(x))
            return super().forward(x)

    monkeypatch.setattr(execution, "_has_bfloat16", lambda device: True)
    torch.manual_seed(0)
    precision = probe(Slower()).precision
    assert precision.startswith("float32, batch norm folded, channels last")
    assert precision.endswith(", some images in bfloat16")


def test_what_is_clearly_the_fastest_ends_the_search(clock, monkeypatch):
    tried = []
    candidate = execution.Executor._candidate

    def noted(self, plan):
        tried.append(plan)
        return candidate(self, plan)

    monkeypatch.setattr(execution.Executor, "_candidate", noted)
    probe(Layouts())
    assert len(tried) == 1
    tried.clear()
    probe(Slow(lambda rows: rows))
    assert len(tried) == 4


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        (lambda rows: 1 + 0.1 * rows, 16),  # a call costs more than an image
        (lambda rows: 0.1 * rows**2, 1),
        (lambda rows: rows, 4),
    ],
)
def test_the_batch_size_is_found_too(clock, monkeypatch, seconds, chosen):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    kept = []
    monkeypatch.setattr(execution.Executor, "__exit__", lambda self, *_: kept.append(self.plan))
    probe(Slow(seconds))
    assert kept[0].batch_size == chosen


@pytest.fixture
def compiling(monkeypatch, tmp_path):
    """Compile whatever the work left, and count it as the fastest."""
    if shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no c++")
    pytest.importorskip("torch._inductor")
    monkeypatch.setattr(execution, "_COMPILING", 0.0)
    monkeypatch.setattr(execution, "_GAIN", np.inf)
    monkeypatch.setattr(execution.Executor, "_variants", lambda *_: [])
    monkeypatch.setattr(execution.Executor, "_resized", lambda _, best, fastest: _none(fastest))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def _none(fastest):
    return fastest
    yield


def test_a_compiled_model_gives_the_same_scores(compiling, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = Layouts(slow_on=None)
    calls = []  # what is called in Python, and by what batch sizes
    monkeypatch.setattr(
        execution.Runner,
        "_forward",
        lambda runner, chunk, forward=execution.Runner._forward: (
            calls.append((runner.batch_size, len(chunk))) or forward(runner, chunk)
        ),
    )
    report, expected = probe(model, cache=True), plain(model)
    assert report.precision == "float32, compiled"
    for scores in expected:
        found = report[scores.layer, scores.scenario]
        np.testing.assert_allclose(found.auroc, scores.auroc, atol=2e-3)
    assert any(size != rows for size, rows in calls)  # the last batch is smaller
    calls.clear()
    assert probe(model, cache=True).to_json() == report.to_json()
    assert not calls
    assert model._compiled_call_impl is None
    assert not torch._inductor.config.freezing
    assert not model.fc._forward_pre_hooks
    # Where it does not pay it runs as it is, and is not forgotten.
    monkeypatch.setattr(execution, "_COMPILING", 1e9)
    assert probe(model, cache=True, max_images=290).precision == "float32"
    monkeypatch.setattr(execution, "_COMPILING", 0.0)
    monkeypatch.setattr(execution, "_WORTH_TUNING", 1e9)
    assert probe(model, cache=True, max_images=280).precision == report.precision


def test_what_cannot_be_compiled_runs_as_it_is(compiling, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", fails)
    model = Layouts(slow_on=None)
    report = probe(model)
    assert report.precision == "float32"
    assert report.to_json() == plain(model).to_json()


def test_what_is_no_faster_compiled_is_not_tried_again(compiling, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    tried = []
    # Not torch.compile itself: a model's fingerprint takes it in.
    monkeypatch.setattr(
        execution.ActivationRecorder, "compile", lambda _, batch_size: tried.append(batch_size)
    )
    monkeypatch.setattr(execution, "_GAIN", 0.0)
    model = Layouts(slow_on=None)
    for images in (300, 290):
        assert probe(model, cache=True, max_images=images).precision == "float32"
    assert len(tried) == 1


def test_nothing_is_compiled_where_that_does_not_pay():
    code = """
import sys, numpy as np, torch, torchvision
from torch import nn
import pytest_watermark_guard as wm
from pytest_watermark_guard.models.running import execution
execution._WORTH_TUNING = 0.0
photos = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
before = {m for m in sys.modules if m.startswith("torch._inductor")}
wm.probe(model, photos, ("latin",), preprocess=wm.Preprocessing(size=(32, 32)), cache=False)
print(len({m for m in sys.modules if m.startswith("torch._inductor")} - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "0"


def test_disagreement_is_in_standard_deviations_of_the_unit():
    rng = np.random.default_rng(0)
    units = rng.normal(5, [1, 100, 0], size=(2000, 3))
    noise = rng.normal(0, [0.1, 1, 0], size=(2000, 3))
    found = execution.disagreement({"a": units}, {"a": units + noise})
    assert found == pytest.approx(0.1, rel=0.1)
    # Shared by all images, a shift moves no rank; but some may be known from an earlier run.
    assert execution.disagreement({"a": units}, {"a": units + np.array([0.5, 0, 0])}) > 0.4
    assert execution.disagreement({"a": units}, {"a": units}) == 0
    assert execution.disagreement({"a": units}, {"a": units * np.nan}) == np.inf
    # A unit that never changes must not start to.
    assert execution.disagreement({"a": units}, {"a": units + [0, 0, 1] * noise[:, :1]}) > 100
