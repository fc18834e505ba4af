"""On a GPU: the same scores, the user's model where it was, and every way that is tried there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.running import execution

if not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA GPU", allow_module_level=True)

SIDE = 64
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


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_faster_ways_agree(precision, monkeypatch):
    monkeypatch.setattr(execution, "_WORTH_TUNING", 0.0)
    exact = probe(net(), precision="float32")
    assert largest_difference(exact, probe(net(), precision=precision)) <= 0.01


def test_a_gate_stops_early_on_a_gpu():
    report = probe(net(), stop_at=0.999)
    assert report.device.startswith("cuda")
    assert report.n_images <= 256
    wm.assert_not_watermark_sensitive(net(), threshold=1, preprocess=PREPROCESSING, cache=False)


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
