"""However an input is put together, it holds the same bits."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

import pytest_watermark_guard as wm
from pytest_watermark_guard.images import inputs as module
from pytest_watermark_guard.images.inputs import model_inputs
from pytest_watermark_guard.watermarks.streams import BLOBS, CONTROLS, UNMARKED, control_of

SIZE = (40, 56)
PHOTOS = np.random.default_rng(0).integers(0, 256, (11, *SIZE, 3), dtype=np.uint8)
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def folder(tmp_path):
    for index, pixels in enumerate(PHOTOS):
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    return tmp_path


def given_by(batches, streams, memory_format):
    """All inputs' names, labels and values; copied, for their memory is used again."""
    with model_inputs(batches, streams, lambda: memory_format) as inputs:
        copies = [(entry.identities, entry.labels, entry.values.clone()) for entry in inputs]
    identities, labels, values = zip(*copies, strict=True)
    return identities, labels, values


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "streams",
    [
        (UNMARKED, "latin", "copies", control_of("latin"), control_of("latin", BLOBS)),
        (control_of("hindi", BLOBS), "latin"),
        (UNMARKED,),
    ],
    ids=["all", "without the unmarked", "unmarked"],
)
def test_readers_and_whole_batches_agree(folder, tmp_path_factory, memory_format, streams):
    copies = tmp_path_factory.mktemp("copies")
    wm.write_marked_folder(folder, copies, "chinese")
    scenarios = ("latin", wm.PairedFolder("copies", copies), "hindi")
    preprocessing = wm.Preprocessing(size=SIZE)
    options = {"preprocess": preprocessing, "batch_size": 4, "device": "cpu"}
    batches = replace(wm.probing_batches(folder, scenarios, **options), controls=CONTROLS)
    assert module._scaled_by_readers(batches)  # or the same would be compared with itself
    read = given_by(batches, streams, memory_format)
    assert all(v.is_contiguous(memory_format=memory_format) for v in read[2])
    assert [len(values) for values in read[2]] == [len(streams) * n for n in (4, 4, 3)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_scaled_by_readers", lambda batches: False)
        whole = given_by(batches, streams, memory_format)
    assert read[:2] == whole[:2]
    assert all(map(torch.equal, read[2], whole[2]))


def test_images_are_read_before_an_input_is_asked_for(folder, monkeypatch):
    read = threading.Event()
    load = module._Filler.__call__

    def noted(filler, *args):
        read.set()
        return load(filler, *args)

    monkeypatch.setattr(module._Filler, "__call__", noted)
    options = {"preprocess": wm.Preprocessing(size=SIZE), "batch_size": 4, "device": "cpu"}
    batches = wm.probing_batches(folder, ("latin",), **options)
    with model_inputs(batches, (UNMARKED,), lambda: torch.contiguous_format):
        assert read.wait(timeout=60)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    mean=st.tuples(*[st.floats(-1, 2)] * 3),
    std=st.tuples(*[st.floats(0.01, 4)] * 3),
)
def test_one_image_in_numpy_is_a_batch_in_torch(memory_format, height, width, seed, mean, std):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    preprocessing = wm.Preprocessing(size=None, mean=mean, std=std)
    expected = preprocessing.to_input(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    room = torch.full((1, 3, height + 2, width + 3), 7.0).to(memory_format=memory_format)
    out = room[0].permute(1, 2, 0).numpy()
    preprocessing.scale_image(pixels, out[1:-1, 2:-1])
    assert torch.equal(room[:, :, 1:-1, 2:-1], expected)
    untouched = room.clone()
    untouched[:, :, 1:-1, 2:-1] = 7.0
    assert (untouched == 7).all()
