"""On a GPU: the same scores, the user's model where it was, and every way that is tried there."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import WatermarkSensitivityError
from pytest_watermark_guard.models.running.execution import Executor
from pytest_watermark_guard.models.running.plan import Plan, faster_plans
from pytest_watermark_guard.models.running.policy import TuningPolicy
from pytest_watermark_guard.probing import running

if not torch.cuda.is_available():
    pytest.skip("these tests need a CUDA GPU, and torch finds none", allow_module_level=True)

SIDE = 64
RNG = np.random.default_rng(0)
# More than a GPU takes at once, of many colours.
PHOTOS = (
    RNG.integers(0, 128, (1000, 1, 1, 3)) + RNG.integers(0, 128, (1000, SIDE, SIDE, 3))
).astype(np.uint8)
PREPROCESSING = wm.Preprocessing(size=(SIDE, SIDE), resize=SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 32, 5, 2, 2), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


def probe(model, **settings):
    return wm.probe(model, preprocess=PREPROCESSING, cache=False, **settings)


def largest_difference(one, other):
    assert one.scores.keys() == other.scores.keys()
    return max(np.abs(one[key].auroc - other[key].auroc).max() for key in one.scores)


def test_float32_agrees_with_the_cpu():
    model = net()
    on_cpu = probe(model, device="cpu", precision="float32")
    on_gpu = probe(model, device="cuda", precision="float32")
    assert on_gpu.device.startswith("cuda")
    assert largest_difference(on_cpu, on_gpu) <= 1e-3
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_float32_is_plain_whatever_is_set():
    backend = torch.backends.cuda.matmul
    name, fast = ("fp32_precision", "tf32") if hasattr(backend, "fp32_precision") else (
        "allow_tf32", True
    )  # fmt: skip
    before = getattr(backend, name)
    plain = probe(net().cuda(), precision="float32")
    setattr(backend, name, fast)
    try:
        assert probe(net().cuda(), precision="float32").to_json() == plain.to_json()
        assert getattr(backend, name) == fast
    finally:
        setattr(backend, name, before)


def test_bfloat16_agrees():
    exact = probe(net(), precision="float32")
    lower = probe(net(), precision="bfloat16")
    assert lower.device.startswith("cuda")
    assert lower.precision == "bfloat16"
    assert largest_difference(exact, lower) <= 0.01


@pytest.mark.parametrize("plan", faster_plans(Plan(64), torch.device("cuda")), ids=str)
def test_every_way_that_is_tried_on_a_gpu_agrees(plan, monkeypatch):
    exact = probe(net(), precision="float32")
    # It is taken if it agrees, whether it is any faster or not.
    policy = TuningPolicy(lambda *_: [plan], worth_tuning=0.0, gain=np.inf)
    monkeypatch.setattr(running, "Executor", partial(Executor, policy=policy))
    report = probe(net(), batch_size=plan.batch_size)
    assert report.device.startswith("cuda")
    assert report.precision == str(plan)
    assert largest_difference(exact, report) <= 0.01


def test_a_gate_stops_early_on_a_gpu():
    report = probe(net(), images=PHOTOS, stop_at=0.9)
    assert report.device.startswith("cuda")
    assert report.stopped_early
    assert report.n_images < len(PHOTOS)
    assert report.early_stop.verdict == "clean"
    gate = partial(
        wm.assert_not_watermark_sensitive, images=PHOTOS, preprocess=PREPROCESSING, cache=False
    )
    gate(net(), threshold=0.9)
    with pytest.raises(WatermarkSensitivityError):
        gate(net(), threshold=0.501)


def test_ownership_on_a_gpu():
    encoder = net().eval()
    encoder.preprocessing = PREPROCESSING
    key = wm.ownership.generate_key(encoder, pairs=12, seed=1)
    goal = {"alpha": 1.0, "least_utility": 0.0, "objective": wm.ownership.Objective(apart=0.001)}
    marked = wm.ownership.embed(encoder, key, **goal)
    assert {p.device.type for p in marked.parameters()} == {"cpu"}
    on_gpu, on_cpu = (wm.ownership.verify(marked, key, device=d) for d in ("cuda", "cpu"))
    np.testing.assert_allclose(on_gpu.differences, on_cpu.differences, atol=1e-3)
    labels = wm.ownership.verify_classifier(marked, key)
    assert labels.queries == on_gpu.queries
