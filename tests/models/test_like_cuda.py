"""What is done for a GPU alone, with its calls replaced where this package makes them.

`test_cuda.py` holds the same against a real one. Here the rules are held that its driver cannot be
asked about: what may be copied without waiting, on which stream, and when memory is given back.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.images.prefetch import one_ahead
from pytest_watermark_guard.models.device import resolve_device
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.plan import Plan, faster_plans
from pytest_watermark_guard.models.running.runner import Runner
from pytest_watermark_guard.watermarks.streams import UNMARKED

GPU = torch.device("cuda")
PHOTOS = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


class OnGpu(torch.Tensor):
    """Says that it lies on a GPU."""

    @property
    def is_cuda(self):
        return True


def test_pixels_are_copied_without_waiting_from_pinned_memory_only(monkeypatch):
    """From other memory such a copy may read what is overwritten already."""
    pinned, copied = set(), []
    to = torch.Tensor.to

    def pin(tensor):
        pinned.add(tensor.data_ptr())
        return tensor

    def copy(tensor, *args, **options):
        if args and args[0] == GPU:
            copied.append(tensor.data_ptr() in pinned or not options.get("non_blocking"))
            return tensor.clone()
        return to(tensor, *args, **options)

    small = wm.Preprocessing(size=(32, 32))
    batches = wm.probing_batches(PHOTOS, "latin", preprocess=small, batch_size=3, device="cpu")
    expected = list(batches.pixels())
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    found = list(replace(batches, device=GPU).pixels())
    assert len(copied) == len(found) == 3
    assert all(copied)
    for one, other in zip(found, expected, strict=True):
        assert one.identities == other.identities
        assert one.by_mark[UNMARKED].is_contiguous()  # put in order there, where it costs nothing
        for stream, pixels in one.by_mark.items():
            assert torch.equal(pixels, other.by_mark[stream])


def test_the_next_input_is_prepared_on_the_callers_stream(monkeypatch):
    """Else the model may begin before its input is there."""
    current = threading.local()
    current.stream = "the caller's"
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current.stream)

    @contextmanager
    def using(stream):
        current.stream = stream
        yield
        current.stream = None

    monkeypatch.setattr(torch.cuda, "stream", using)
    jobs = [lambda: (threading.get_ident(), current.stream)] * 3
    found = list(one_ahead(jobs, GPU))
    assert [stream for _, stream in found] == ["the caller's"] * 3
    assert threading.get_ident() not in {thread for thread, _ in found}


class Small(nn.Module):
    """Has room for two images."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 5)
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self.fc(x.flatten(1))


@pytest.mark.parametrize("on_gpu", [True, False])
def test_where_a_batch_does_not_fit_its_memory_is_given_back_before_a_smaller_one(
    on_gpu, monkeypatch
):
    x = torch.rand(9, 3, 2, 2)
    model = Small()
    expected = model.fc(x.flatten(1)).detach().numpy()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: model.sizes.append("emptied"))
    with ActivationRecorder(model, ("logits",), x[:2]) as recorder:
        model.sizes.clear()
        runner = Runner(recorder, Plan(8), time.perf_counter)
        found = runner(x.as_subclass(OnGpu) if on_gpu else x)
    emptied = ["emptied"] if on_gpu else []
    assert model.sizes == [8, *emptied, 4, *emptied, 2, 2, 2, 2, 1]
    assert runner.plan.batch_size == 2
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-6)


def test_workers_get_gpus_in_turn(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda size, device: empty(size))
    for asked in ("auto", "cuda"):
        assert [resolve_device(asked, worker).index for worker in range(4)] == [0, 1, 0, 1]
    assert resolve_device("cuda:1", worker=2).index == 1


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_on_a_gpu_bfloat16_is_tried_where_it_is_no_emulation(has_bfloat16, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda **how: asked.append(how) or has_bfloat16
    )
    precisions = [plan.precision for plan in faster_plans(Plan(64), GPU)]
    assert asked == [{"including_emulation": False}]
    assert precisions == ["bfloat16 weights", "bfloat16"] * has_bfloat16 + ["float32"]
    assert not any(plan.openvino for plan in faster_plans(Plan(64), GPU))
