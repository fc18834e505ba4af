"""Files that other tools were told to fail on: damaged uploads, odd decoders, cut-off caches."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from pytest_watermark_guard.errors import ImagesError, ModelSpecError
from pytest_watermark_guard.images.decoding import read_image
from pytest_watermark_guard.models.loading.checkpoints import read_checkpoint

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(format_: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format_, **options)
    return file.getvalue()


def text_chunk_that_grows() -> bytes:
    """Raises ValueError for text that is too long when it is unpacked."""
    text = b"zTXtComment\0\0" + zlib.compress(b"x" * 2**21)
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    content = saved("PNG")
    return content[:33] + chunk + content[33:]


PICTURES = {
    "a text that grows": text_chunk_that_grows,
    "a largest value of 0": lambda: b"P3\n2 2\n0\n0 0 0 0 0 0 0 0 0 0 0 0\n",  # ZeroDivisionError
    "half a JPEG": lambda: saved("JPEG")[:400],
    "half a PNG": lambda: saved("PNG")[:900],
    "half a WebP": lambda: saved("WEBP")[:200],
    "a web page": lambda: b"<!DOCTYPE html><html>404</html>",
    "zeros": lambda: bytes(500),
    "sent as text": lambda: saved("PNG").replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("what", PICTURES)
def test_pictures(tmp_path, what):
    (tmp_path / "x.jpg").write_bytes(PICTURES[what]())
    with pytest.raises(ImagesError, match=r"cannot read '.*x\.jpg': .+\. Remove or replace"):
        read_image(tmp_path / "x.jpg")


def state(**options) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.arange(1000.0)}, file, **options)
    return file.getvalue()


def an_old_tar() -> bytes:
    """Raises KeyError: no storages."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO())
    return file.getvalue()


CHECKPOINTS = {
    "an empty file": lambda: b"",  # EOFError: Ran out of input
    "cut off": lambda: state()[:3000],  # no central directory
    "cut off, of the old format": lambda: state(_use_new_zipfile_serialization=False)[:2000],
    "half of it zeros": lambda: state()[:1500] + bytes(len(state()) - 1500),
    "sent as text": lambda: state(_use_new_zipfile_serialization=False).replace(b"\n", b"\r\n"),
    "an old archive without its parts": an_old_tar,
    "a web page": lambda: b"<!DOCTYPE html><html>quota exceeded</html>",
    "a pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
}


@pytest.mark.parametrize("what", CHECKPOINTS)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_checkpoints(tmp_path, what, name):
    (tmp_path / name).write_bytes(CHECKPOINTS[what]())
    with pytest.raises(ModelSpecError, match=name):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"\0" * 200, b"PK\x03\x04"])
def test_a_cache_of_cut_off_files_is_made_again(tmp_path, monkeypatch, content):
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    photos = tiny.photos(tmp_path / "photos")
    said = tiny.probe(photos).to_json()
    for path in (tmp_path / "cache").rglob("*.guard*"):
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="computed again"):
        assert tiny.probe(photos).to_json() == said
    assert tiny.probe(photos).to_json() == said
