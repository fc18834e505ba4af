"""Threads: a share of the cores, fewer where others keep them busy, and torch's setting stays."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import pytest_watermark_guard as wm
from pytest_watermark_guard.models.running.threads import (
    free_threads,
    share_of_cores,
    using_threads,
)
from pytest_watermark_guard.probing import running
from pytest_watermark_guard.probing.context import Run, using_run

PHOTOS = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _four_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4), raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("workers", "share"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_workers_share_the_cores(workers, share):
    assert share_of_cores(workers) == share


def test_a_lower_setting_of_torch_is_kept():
    torch.set_num_threads(2)
    assert share_of_cores() == 2


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        ({4: 1.0, 2: 1.9, 1: 3.8}, 4),  # quiet
        ({4: 8.0, 2: 2.0, 1: 4.0}, 2),  # two of four cores are busy
        ({4: 9.0, 2: 5.0, 1: 2.0}, 1),
        ({4: 1.0, 2: 0.9, 1: 0.8}, 4),  # nothing that noise could not be
    ],
)
def test_fewer_threads_where_that_is_clearly_faster(seconds, count):
    assert free_threads(4, seconds.__getitem__) == count


def test_a_core_that_is_busy_for_a_moment_counts_as_free():
    seconds = {4: iter([8.0, 1.0]), 2: iter([2.0, 2.0])}
    assert free_threads(4, lambda count: next(seconds[count])) == 4


def test_fewer_threads_are_told_and_put_back(monkeypatch):
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x.mean((2, 3))

    monkeypatch.setattr(running, "free_threads", lambda most: 1)
    options = {"preprocess": wm.Preprocessing(size=(32, 32)), "outputs": "logits", "cache": False}
    with using_run(Run()):  # not that of these tests, whose workers share the cores
        report = wm.probe(Model(), PHOTOS, ("latin",), **options)
    assert report.precision == "float32, 1 of 4 threads"
    assert 1 in seen
    assert torch.get_num_threads() == 4


def test_torchs_setting_comes_back_after_an_error():
    def fail():
        with using_threads(1):
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.get_num_threads() == 4
