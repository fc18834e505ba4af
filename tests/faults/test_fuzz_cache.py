"""Cache entries that somebody forged, with a right checksum: computed again, whatever they hold."""

from __future__ import annotations

import io
import json
import random
import shutil
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
from fuzzing import counted, told
from mutating import documents, mutants

from pytest_watermark_guard.caching import store as module
from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.probing import recording

KEY = "0" * 64


def forge(path: Path, payload: bytes) -> None:
    """Write an entry as the store would."""
    checksum = zlib.crc32(payload, module._seed(path))
    path.write_bytes(payload + module._TRAILER.pack(module._MARK, len(payload), checksum))


def payload_of(path: Path) -> bytes:
    return path.read_bytes()[: -module._TRAILER.size]


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=True)
    return file.getvalue()


ARRAYS = [
    np.zeros((3, 4), np.float32),
    np.full((8, 2), np.nan, np.float32),
    np.full((8, 2), np.inf),
    np.full((80, 2), 0.5, np.float32),
    np.zeros((8, 7), np.float32),
    np.zeros(0),
    np.zeros((0, 2), np.float32),
    np.array(1.0),
    np.arange(6),
    np.full(6, 2.0),
    np.full(6, -1.0),
    np.zeros((2, 2), complex),
    np.array([b"x", b"y"]),
    np.array([{}], dtype=object),
    np.zeros(3, [("hash", "<u8")]),
    np.zeros((8, 16, 16, 3), np.float64),
    np.zeros((9, 16, 16, 3), np.uint8),
]


def test_arrays(tmp_path, record_property):
    store = Store(tmp_path, 10**9)
    path = store._path("results", KEY, ".npy")
    path.parent.mkdir(parents=True)
    read = refused = 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is damaged")
        for payload in mutants([as_npy(array) for array in ARRAYS], told("cache"), 21):
            forge(path, payload)
            array = store.get_array("results", KEY)
            if array is None:
                refused += 1
                assert not path.exists()
            else:
                read += 1
                assert array.nbytes <= len(payload)
                assert not array.dtype.hasobject
    counted(record_property, "cached arrays", told("cache"), read, refused)
    assert read > 30
    assert refused > 100


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Photos, what a probe of them says, and what it leaves; with and without activations."""
    photos = tiny.photos(tmp_path / "photos")
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "whole"))
    said = tiny.probe(photos)
    with monkeypatch.context() as patched:
        patched.setattr(recording, "_SPILL", 0)
        shutil.copytree(tmp_path / "whole", tmp_path / "large")
        for kind in ("layers", "activations", "scores"):
            shutil.rmtree(tmp_path / "large" / "cache" / kind)
        patched.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "large"))
        tiny.probe(photos)
    return photos, said, {"small": tmp_path / "whole", "large": tmp_path / "large"}


def forged(path: Path, rng: random.Random) -> bytes:
    """Give other content for an entry: a changed document, another array, or any bytes."""
    payload = payload_of(path)
    if rng.random() < 0.15:
        return next(mutants([payload], 1, rng.randrange(10**9)))
    if path.suffix == ".npy":
        return as_npy(rng.choice(ARRAYS))
    return next(documents([json.loads(payload)], 1, rng.randrange(10**9))).encode()


@pytest.mark.parametrize("size", ["small", "large"])
def test_probes(tmp_path, monkeypatch, record_property, cached, size):
    photos, said, caches = cached
    rng = random.Random(22)
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "now"))
    if size == "large":
        monkeypatch.setattr(recording, "_SPILL", 0)
    entries = sorted(p.relative_to(caches[size]) for p in caches[size].rglob("*.guard*"))
    kinds = {entry.parts[1] for entry in entries}
    assert kinds >= ({"results", "answers"} if size == "large" else {"layers", "activations"})
    warned = 0
    for number in range(told("probes") // 2):
        shutil.copytree(caches[size], tmp_path / "now")
        path = tmp_path / "now" / entries[number % len(entries)]
        forge(path, forged(path, rng))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = tiny.probe(photos)
        assert len(caught) <= 1, [str(one.message) for one in caught]
        warned += bool(caught)
        if caught:
            # By its name, or those of all arrays of a layer that do not fit each other.
            assert str(tmp_path / "now") in str(caught[0].message)
            # What was damaged is there again, and the numbers are those of before.
            np.testing.assert_array_equal(
                report["logits", "bars"].auroc, said["logits", "bars"].auroc
            )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tiny.probe(photos)
        shutil.rmtree(tmp_path / "now")
    print(f"{told('probes') // 2} probes with a forged entry ({size}), {warned} of them warned")
    record_property("inputs", told("probes") // 2)
    assert warned > 20
