"""The next input is prepared while the model runs, and nothing else changes."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ImagesError, ModelError
from pytest_watermark_guard.images import inputs
from pytest_watermark_guard.images.prefetch import in_turn, one_ahead

CPU = torch.device("cpu")
SMALL = wm.Preprocessing(size=(32, 32))
PHOTOS = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), dtype=np.uint8)


def workers():
    return [t for t in threading.enumerate() if t.name.startswith(("wm-prepare", "wm-decode"))]


def test_results_come_in_order_from_another_thread():
    found = list(
        one_ahead([partial(lambda i: (i, threading.get_ident()), i) for i in range(5)], CPU)
    )
    assert [i for i, _ in found] == list(range(5))
    assert threading.get_ident() not in {thread for _, thread in found}
    assert not workers()
    assert list(one_ahead([], CPU)) == []


def test_the_next_job_is_asked_for_once_the_result_is_there():
    events = []

    def jobs():
        for index in range(3):
            events.append(f"asked {index}")
            yield partial(events.append, f"done {index}")

    for _ in in_turn(jobs()):
        events.append("used")
    assert events == [
        *("asked 0", "done 0", "asked 1", "used", "done 1"),
        *("asked 2", "used", "done 2", "used"),
    ]
    assert list(in_turn([])) == []


def test_the_next_job_is_done_while_the_result_is_used():
    second = threading.Event()
    pieces = one_ahead([lambda: 1, second.set, lambda: 3], CPU)
    with closing(pieces):
        assert next(pieces) == 1
        assert second.wait(30)


def test_memory_is_bounded():
    asked = []

    def jobs():
        for index in range(100):
            asked.append(index)
            yield lambda: None

    with closing(one_ahead(jobs(), CPU)) as pieces:
        for count in range(1, 4):
            next(pieces)
            assert len(asked) == count + 2
    assert len(asked) == 5
    assert not workers()


def test_an_error_comes_in_its_turn():
    pieces = one_ahead([lambda: 1, lambda: 1 / 0, lambda: 3], CPU)
    assert next(pieces) == 1
    with pytest.raises(ZeroDivisionError):
        next(pieces)
    assert not workers()


@pytest.fixture
def overlapped(monkeypatch):
    """What is done for GPUs, on the CPU."""
    monkeypatch.setattr(inputs, "_OVERLAPPED", ("cpu",))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def probe(model, images=PHOTOS, **arguments):
    arguments = {"preprocess": SMALL, "precision": "float32", "cache": False, **arguments}
    return wm.probe(model, images, ("latin", "arabic_numerals"), **arguments)


@pytest.mark.parametrize("arguments", [{}, {"stop_at": 0.95}, {"control": True}], ids=str)
def test_a_probe_gives_the_same_bits(model, monkeypatch, arguments):
    expected = probe(model, **arguments)
    monkeypatch.setattr(inputs, "_OVERLAPPED", ("cpu",))
    assert probe(model, **arguments).to_json() == expected.to_json()
    assert not workers()


def test_the_last_batch_is_read_to_its_end(tmp_path):
    for index in range(40):
        Image.fromarray(PHOTOS[index]).resize((640, 640)).save(tmp_path / f"{index}.png")
    batches = wm.probing_batches(tmp_path, ("latin",), preprocess=SMALL, batch_size=20)
    jobs = [*batches.jobs()]  # all are asked for before one is done
    assert [len(job().identities) for job in jobs] == [20, 20]


def test_users_functions_are_called_in_their_thread(model, overlapped):
    threads = set()

    def preprocess(values):
        threads.add(threading.current_thread())
        return values

    preprocess.size = (32, 32)
    probe(model, preprocess=preprocess)
    assert threads == {threading.main_thread()}


def test_a_damaged_image_is_named(model, overlapped, tmp_path):
    for index, pixels in enumerate(PHOTOS[:60]):
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    (tmp_path / "41.png").write_bytes(b"no image")
    with pytest.raises(ImagesError, match=r"41\.png"):
        probe(model, tmp_path)
    assert not workers()


def test_a_model_that_fails_leaves_no_thread(overlapped):
    class Fails(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            type(self).calls += 1
            if self.calls > 12:  # well after the layers were found
                raise OSError("enough")
            return self.fc(x.mean((2, 3)))

    with pytest.raises(ModelError, match="OSError: enough"):
        probe(Fails())
    assert not workers()
