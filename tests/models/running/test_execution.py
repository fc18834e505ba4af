"""How the model is run: the fastest way that agrees, and never at the model's expense."""

from __future__ import annotations

import gc
import json
import re
import shutil
import subprocess
import sys
import time
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.execution import Executor
from pytest_watermark_guard.models.running.plan import Plan, faster_plans
from pytest_watermark_guard.models.running.policy import TuningPolicy
from pytest_watermark_guard.probing import recording, running
from pytest_watermark_guard.probing.caches.plans import PlanCache

PHOTOS = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
INPUTS = torch.rand(900, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ROWS_AT_ONCE = 60
SMALL = wm.Preprocessing(size=(32, 32))
START = Plan(4)


def by_torch(start, device, *, bfloat16=False):
    """Give the same plans on every machine; OpenVINO runs none of a model's Python code."""
    return [p for p in faster_plans(start, device, bfloat16=bfloat16) if not p.openvino]


# However little there is to do.
EAGER = TuningPolicy(plans=by_torch, worth_tuning=0.0)


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
def clock(monkeypatch):
    """Time passes while the model sleeps and not otherwise, however busy the machine."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    return lambda: now[0]


@pytest.fixture
def execute(clock):
    """Run a model over all inputs; returns the activations by layer and the executor."""

    def run(model, policy=EAGER, start=START, **options):
        options = {"tuning": True, "sizes": True, "policy": policy, "clock": clock, **options}
        recorder = ActivationRecorder(model, ("logits", "features"), INPUTS[:2])
        with recorder, Executor(recorder, start, len(INPUTS), **options) as executor:
            parts = [executor(batch) for batch in INPUTS.split(ROWS_AT_ONCE)]
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}, executor

    return run


@pytest.fixture
def probing_with(clock, monkeypatch):
    """Have probes run models by another policy; returns the list of batches that they run.

    Each entry is the number of rows, and the plan after the batch.
    """
    batches = []

    class Noting(Executor):
        def __call__(self, inputs, streams=1):
            activations = super().__call__(inputs, streams)
            batches.append((len(inputs), self.plan))
            return activations

    def use(policy=EAGER):
        monkeypatch.setattr(running, "Executor", partial(Noting, policy=policy, clock=clock))
        return batches

    return use


def probe(model, **arguments):
    arguments = {"cache": False, "preprocess": SMALL, "seed": 5, **arguments}
    return wm.probe(model, PHOTOS, ("latin", "arabic_numerals"), **arguments)


def plain(model, **arguments):
    return probe(model, precision="float32", **arguments)


def never(*_):
    pytest.fail("another plan was tried")


def test_the_faster_way_is_taken_and_gives_the_same_scores(probing_with):
    probing_with(EAGER)
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
def test_ways_that_are_no_good_are_not_taken(model, execute):
    tried = []

    def only_channels_last(start, device):
        tried.append(Plan(start.batch_size, channels_last=True))
        return tried

    activations, executor = execute(model, TuningPolicy(only_channels_last, worth_tuning=0.0))
    assert tried
    assert not executor.plan.channels_last
    expected, _ = execute(model, tuning=False)
    for layer, units in expected.items():
        np.testing.assert_allclose(activations[layer], units, atol=1e-5)


def test_a_way_that_had_to_wait_once_is_measured_again(execute):
    class Waiting(Layouts):
        called = count()  # in the other memory format; not copied with the model

        def forward(self, x):
            if x.is_contiguous(memory_format=torch.channels_last) and next(self.called) < 31:
                time.sleep(0.0015 * len(x))  # to be compared, and in its first batch
            return super().forward(x)

    plans = [Plan(4, channels_last=True)]
    _, executor = execute(Waiting(), TuningPolicy(lambda *_: plans, worth_tuning=0.0), sizes=False)
    assert executor.plan.channels_last


def test_how_far_activations_may_be_apart_is_the_policys(execute):
    torch.manual_seed(0)
    model = Layouts(noise=0.1)
    for taken in (False, True):
        policy = TuningPolicy(EAGER.plans, agrees=lambda _, taken=taken: taken, worth_tuning=0.0)
        assert execute(model, policy)[1].plan.channels_last == taken


def test_float32_is_the_same_to_the_bit():
    torch.manual_seed(0)
    model = Layouts()
    first, second = plain(model), plain(model)
    assert first.to_json() == second.to_json()


def test_a_model_that_cannot_be_copied_runs_as_it_is(execute):
    copied = []

    class Single(Layouts):
        def __deepcopy__(self, memo):
            copied.append(self)
            raise RuntimeError("there is one of me")

    _, executor = execute(Single(), sizes=False)
    assert copied
    assert executor.plan == START


def test_short_runs_are_not_worth_trying(execute):
    work = 0.001 * len(INPUTS)  # seconds
    for worth_tuning, tried in ((1.1 * work, False), (0.5 * work, True)):
        policy = TuningPolicy(EAGER.plans, worth_tuning=worth_tuning)
        assert (execute(Layouts(), policy)[1].plan != START) == tried


def test_the_fastest_way_is_remembered(probing_with, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = Layouts()
    probing_with(EAGER)
    first = probe(model, cache=True)
    probing_with(TuningPolicy(never, worth_tuning=0.0))
    # Another subset is not known yet, the model is.
    second = probe(model, cache=True, max_images=250)
    assert second.precision == first.precision
    assert "channels last" in second.precision


def test_a_plan_is_plain_data_and_back():
    plan = Plan(16, "bfloat16", openvino=True, compiled=False)
    assert Plan(**json.loads(json.dumps(plan.to_dict()))) == plan


def test_a_remembered_way_that_is_no_good_any_more_is_replaced(probing_with, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    probing_with(EAGER)
    monkeypatch.setattr(PlanCache, "load", lambda _: Plan(4, channels_last=True))
    kept = []
    monkeypatch.setattr(PlanCache, "save", lambda _, plan: kept.append(plan))
    report = probe(Layouts(slow_on=None, picky=True), cache=True)
    assert report.precision.startswith("float32")
    assert len(kept) == 1
    assert not kept[0].channels_last


def test_what_is_best_without_bfloat16_is_not_remembered(probing_with, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    probing_with(EAGER)
    model = Layouts()
    wm.probe(model, PHOTOS, ("hindi",), preprocess=SMALL, seed=5)
    fast = Plan(4, "bfloat16", channels_last=True)
    monkeypatch.setattr(PlanCache, "load", lambda _: fast)
    monkeypatch.setattr(PlanCache, "save", lambda *_: pytest.fail("remembered"))
    # The photos without a mark are known in float32: so must be what is compared with them.
    precision = probe(model, cache=True).precision
    assert "channels last" in precision
    assert "bfloat16" not in precision


def test_units_that_only_see_marks_must_agree_as_well(probing_with):
    class Ink(Layouts):
        def forward(self, x):
            last = x.is_contiguous(memory_format=torch.channels_last)
            ink = (x.amin(1).amax((1, 2)) - 0.6).relu()
            noise = ink * last * torch.randn_like(ink)
            return super().forward(x) + noise[:, None] * torch.tensor([0.0, 0.0, 1e4])

    probing_with(EAGER)
    dark = PHOTOS // 2
    blank = wm.Preprocessing(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    report = wm.probe(Ink(), dark, ("latin",), preprocess=blank, cache=False)
    assert "channels last" not in report.precision


class Casting(Layouts):
    """Cannot be run with weights in another precision."""

    def forward(self, x):
        return super().forward(x.float())


WITH_BFLOAT16 = TuningPolicy(partial(by_torch, bfloat16=True), worth_tuning=0.0)


@pytest.mark.parametrize("kind", [Layouts, Casting])
def test_bfloat16_where_the_hardware_has_it(probing_with, kind):
    """On hardware without it the speed is beside the point: it must be tried, and agree."""
    probing_with(WITH_BFLOAT16)
    torch.manual_seed(0)
    model = kind()
    report, expected = probe(model), plain(model)
    way = "bfloat16 weights" if kind is Layouts else "bfloat16"
    assert re.fullmatch(rf"{way}, channels last, \|ΔA\| up to 0\.\d+ by estimate", report.precision)
    np.testing.assert_allclose(
        report["logits", "latin"].auroc, expected["logits", "latin"].auroc, atol=0.01
    )


def test_a_report_says_when_some_images_were_run_in_bfloat16(probing_with):
    class Slower(Layouts):
        def forward(self, x):
            if self.stem.weight.dtype is torch.bfloat16 or torch.is_autocast_enabled("cpu"):
                time.sleep(0.01 * len(x))
            return super().forward(x)

    probing_with(WITH_BFLOAT16)
    torch.manual_seed(0)
    precision = probe(Slower()).precision
    assert precision.startswith("float32, channels last")
    assert precision.endswith(", some images in bfloat16")


def test_near_a_threshold_units_are_scored_again_in_float32(probing_with, monkeypatch):
    """Under the scenario that has them; with examples of marked images, under all."""
    batches = probing_with(WITH_BFLOAT16)
    monkeypatch.setattr(running, "free_threads", lambda most: most)  # or kernels could differ
    torch.manual_seed(0)
    model = Layouts()
    exact, first = plain(model), probe(model)
    near, far = (
        np.concatenate([s.differentiability for s in exact if s.scenario == name])
        for name in ("arabic_numerals", "latin")
    )
    apart = np.abs(near[:, None] - far).min(axis=1)
    margin = 0.01 * max(1, (400 / exact.n_images) ** 0.5)  # of few images chance is a part
    assert apart.max() > 1.2 * margin
    gate = {"early_stop": 0, "stop_at": float(near[apart.argmax()])}
    batches.clear()
    report = probe(model, **gate)
    assert report.precision.endswith(
        f"arabic_numerals in float32, as a unit was within {margin:.2g} of a threshold"
    )
    assert report.number_format == "bfloat16 weights, arabic_numerals in float32"
    in_one = sum(rows for rows, _ in batches)
    assert batches[-1][1].precision == "float32"
    for scores in exact:
        found = report[scores.layer, scores.scenario]
        if scores.scenario == "latin":
            np.testing.assert_array_equal(found.auroc, first[scores.layer, "latin"].auroc)
        else:
            np.testing.assert_allclose(found.auroc, scores.auroc, atol=2e-3)
    batches.clear()
    whole = probe(model, examples=True, **gate)
    assert sum(rows for rows, _ in batches) == in_one + exact.n_images
    assert whole.number_format == "float32"
    assert whole.precision.endswith(f"again, as a unit was within {margin:.2g} of a threshold")
    for scores in exact:
        found = whole[scores.layer, scores.scenario]
        np.testing.assert_allclose(found.auroc, scores.auroc, atol=2e-3)
    beyond = float(max(near.max(), far.max())) + 1.1 * margin
    assert probe(model, early_stop=0, stop_at=min(beyond, 1)).precision.startswith("bfloat16")
    asked = probe(model, precision="bfloat16", **gate)  # is what is to be gated
    assert asked.precision == "bfloat16"
    assert probe(model).precision.startswith("bfloat16")  # no gate: nothing is decided


@pytest.mark.parametrize("spill", [10**9, 100], ids=["activations", "results"])
def test_what_a_probe_left_in_the_cache_does_not_decide_near_a_threshold(
    probing_with, monkeypatch, tmp_path, spill
):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    monkeypatch.setattr(recording, "_SPILL", spill)  # bytes; of more, only results are kept
    batches = probing_with(WITH_BFLOAT16)
    torch.manual_seed(0)
    model = Layouts()
    report = probe(model, cache=True, early_stop=0)
    assert report.precision.startswith("bfloat16")
    highest = max(float(scores.differentiability.max()) for scores in report)
    gate = {"cache": True, "early_stop": 0, "stop_at": highest}
    near = probe(model, **gate)
    assert near.number_format.endswith("in float32")
    batches.clear()
    assert probe(model, **gate).to_json() == near.to_json()
    # The first images again, as they are run before anything cached is used.
    assert sum(rows for rows, _ in batches) <= 10


@pytest.mark.parametrize(
    ("model", "tried"),
    [(Layouts(), 1), (Slow(lambda rows: rows), 3)],
    ids=["the first is clearly faster", "none is"],
)
def test_what_is_clearly_the_fastest_ends_the_search(model, tried, execute):
    asked = []
    plans = [Plan(4, channels_last=True), Plan(3, channels_last=True), Plan(2, channels_last=True)]

    def noting(start, device):
        for plan in plans:
            asked.append(plan)
            yield plan

    execute(model, TuningPolicy(noting, worth_tuning=0.0))
    assert asked == plans[:tried]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        (lambda rows: 1 + 0.1 * rows, 16),  # a call costs more than an image
        (lambda rows: 0.1 * rows**2, 1),
        (lambda rows: rows, 4),
    ],
)
def test_the_batch_size_is_found_too(execute, seconds, chosen):
    _, executor = execute(Slow(seconds))
    assert executor.tuned
    assert executor.plan.batch_size == chosen


def test_a_batch_size_that_was_asked_for_stays(execute):
    _, executor = execute(Slow(lambda rows: 1 + 0.1 * rows), sizes=False)
    assert executor.tuned
    assert executor.plan.batch_size == 4


def test_leaving_in_the_middle_of_the_search_leaves_no_copy_behind(clock):
    class FasterChannelsLast(Layouts):
        def forward(self, x):
            time.sleep(0.001 * len(x))  # half of the time
            return super().forward(x)

    def plans(start, device):
        return Plan(4, channels_last=True), Plan(2)

    policy = TuningPolicy(plans, worth_tuning=0.0)
    options = {"tuning": True, "sizes": True, "policy": policy, "clock": clock}
    recorder = ActivationRecorder(FasterChannelsLast(), ("logits",), INPUTS[:2])
    with recorder, Executor(recorder, START, len(INPUTS), **options) as executor:
        for batch in INPUTS.split(ROWS_AT_ONCE)[:3]:
            executor(batch)
        assert executor.plan == Plan(2)  # and the copy before is the fastest so far
    torch.manual_seed(1)
    state = torch.get_rng_state()
    del executor
    gc.collect()  # a copy that was still entered would now put the random state back
    assert torch.equal(torch.get_rng_state(), state)


# As on a GPU, on whatever is there.
ON_CPU = {"worth_tuning": 0.0, "compiled_on": ("cpu",)}
COMPILING = TuningPolicy(lambda *_: (), compiling=0.0, **ON_CPU)
NOT_COMPILING = TuningPolicy(lambda *_: (), compiling=1e9, **ON_CPU)


class SlowInPython(Layouts):
    """Takes its time unless it is compiled."""

    def __init__(self):
        super().__init__(slow_on=None)

    def forward(self, x):
        if not torch.compiler.is_compiling():
            time.sleep(0.001 * len(x))
        return super().forward(x)


def test_a_compiled_model_gives_the_same_scores(probing_with, monkeypatch, tmp_path):
    if shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no c++")
    pytest.importorskip("torch._inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    model = SlowInPython()
    options = {"cache": True, "batch_size": 8}
    batches = probing_with(COMPILING)
    report = probe(model, **options)
    # Built-in images are looked at afterwards, which is not worth compiling for.
    rows, plan = [(rows, plan) for rows, plan in batches if plan.compiled][-1]
    expected = plain(model)
    assert report.precision == "float32, compiled"
    assert rows % plan.batch_size  # the last batch is smaller than what was compiled for
    for scores in expected:
        compiled = report[scores.layer, scores.scenario]
        np.testing.assert_allclose(compiled.auroc, scores.auroc, atol=2e-3)
    batches.clear()
    assert probe(model, **options).to_json() == report.to_json()
    # The first images again, as they are run before anything cached is used.
    assert sum(rows for rows, _ in batches) <= 8
    assert model._compiled_call_impl is None
    assert not torch._inductor.config.freezing
    assert not model.fc._forward_pre_hooks
    # Where it does not pay it runs as it is, and is not forgotten.
    probing_with(NOT_COMPILING)
    assert probe(model, **options, max_images=290).precision == "float32"
    probing_with(TuningPolicy(never, worth_tuning=1e9, compiling=0.0, compiled_on=("cpu",)))
    assert probe(model, **options, max_images=280).precision == report.precision


def test_what_cannot_be_compiled_runs_as_it_is(probing_with, monkeypatch):
    tried = []

    def fails(*_, **__):
        tried.append(True)
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", fails)
    probing_with(COMPILING)
    model = SlowInPython()
    report = probe(model, batch_size=8)
    assert tried
    assert report.precision == "float32"
    assert report.to_json() == plain(model, batch_size=8).to_json()


def test_what_is_no_faster_compiled_is_not_tried_again(probing_with, monkeypatch, tmp_path):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    tried = []
    # Not torch.compile itself: only the recorder's call of it is counted.
    monkeypatch.setattr(
        ActivationRecorder, "compile", lambda _, batch_size: tried.append(batch_size)
    )
    probing_with(COMPILING)
    model = SlowInPython()
    for images in (300, 290):
        report = probe(model, cache=True, batch_size=8, max_images=images)
        assert report.precision == "float32"
    assert len(tried) == 1


def test_nothing_is_compiled_where_that_does_not_pay():
    code = """
import sys, torch
from torch import nn
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.execution import Executor
from pytest_watermark_guard.models.running.plan import Plan
from pytest_watermark_guard.models.running.policy import TuningPolicy
inputs = torch.rand(640, 3, 32, 32)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
before = {m for m in sys.modules if m.startswith("torch._inductor")}
policy = TuningPolicy(lambda *_: (), worth_tuning=0.0, compiled_on=("cpu",))
with ActivationRecorder(model, ("logits",), inputs[:2]) as recorder:
    options = {"tuning": True, "sizes": True, "policy": policy}
    with Executor(recorder, Plan(4), len(inputs), **options) as executor:
        for batch in inputs.split(16):
            executor(batch)
print(executor.tuned, executor.plan.compiled)
print(len({m for m in sys.modules if m.startswith("torch._inductor")} - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "None", "0"]
