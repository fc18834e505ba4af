"""Pictures as they lie on people's disks, each read right or refused by its name."""

from __future__ import annotations

import os
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pytest_watermark_guard as wm
from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.images.baseline import open_baseline
from pytest_watermark_guard.images.decoding import read_image
from pytest_watermark_guard.ownership.encoder import read_pixels

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
ORIENTATION = 0x0112


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_16_bits(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel; Pillow writes none of several channels."""
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def palette_with_transparency(path: Path) -> None:
    image = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(path, transparency=bytes(range(256)))


def larger_than_pillow_likes(path: Path) -> None:
    Image.new("L", (9500, 9500), 99).save(path)


def with_damaged_exif(path: Path) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x30" + b"\x01\x12\0\x05\x7f\0\0\0\x7f\0\0\0" * 9
    Image.fromarray(PIXELS).save(path, exif=exif)


def malformed_mpo(path: Path) -> None:
    image = Image.fromarray(PIXELS)
    image.save(path, format="MPO", save_all=True, append_images=[image])
    content = bytearray(path.read_bytes())
    at = content.index(b"MPF\0")
    content[at + 26] ^= 0x7F  # the tag of how many images there are
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("palette.png", palette_with_transparency),
        ("large.png", larger_than_pillow_likes),
        ("exif.jpg", with_damaged_exif),
        ("mpo.jpg", malformed_mpo),
    ],
)
def test_pillow_s_warnings_do_not_reach_anyone(tmp_path, name, make):
    make(tmp_path / name)
    before = list(warnings.filters)
    baseline = open_baseline(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, _ = baseline.load(0)
    assert image.mode == "RGB"
    assert warnings.filters == before
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        baseline.load(0)
    assert caught == []


def test_the_files_of_these_tests_do_warn(tmp_path):
    """Or the test above could not fail."""
    for name, make in (("p.png", palette_with_transparency), ("l.png", larger_than_pillow_likes),
                       ("e.jpg", with_damaged_exif), ("m.jpg", malformed_mpo)):  # fmt: skip
        make(tmp_path / name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Image.open(tmp_path / name) as image:
                image.getexif().get(ORIENTATION)
                image.convert("RGB")
        assert caught, name


def test_a_palette_keeps_its_colours(tmp_path):
    palette_with_transparency(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
        expected = palette[np.asarray(image)]
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "p.png")), expected)


def test_someone_s_own_palette_image_warns_of_nothing(tmp_path):
    palette_with_transparency(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        image.load()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert open_baseline([image]).load(0)[0].mode == "RGB"
        assert image.mode == "P", "it is as it was"
        assert "transparency" in image.info


class BrokenError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [BrokenError("x"), MemoryError(), RecursionError(), UserWarning("w")]
)
def test_whatever_a_decoder_raises_has_the_file_s_name(tmp_path, monkeypatch, error):
    Image.fromarray(PIXELS).save(tmp_path / "some.png")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImagesError, match=r"cannot read '.*some\.png': .+\. Remove or replace"):
        open_baseline(tmp_path).load(0)
    with pytest.raises(ImagesError, match=r"images\[0\]: cannot be read: ."):
        open_baseline([Image.fromarray(PIXELS)]).load(0)


# Value ranges


@pytest.mark.parametrize("high", [255, 256, 1023, 4095, 32767])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fewer_bits_in_the_place_of_16_are_refused(tmp_path, channels, high):
    values = RNG.integers(0, high + 1, (9, 9, channels))
    values[0, 0] = high
    (tmp_path / "dark.png").write_bytes(png_of_16_bits(values))
    with pytest.raises(ImagesError, match=r"dark\.png: its largest value is \d+ of 65535"):
        open_baseline(tmp_path).load(0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_all_16_bits_are_read(tmp_path, channels):
    values = RNG.integers(0, 65536, (9, 9, channels))
    values[0, 0] = 65535
    (tmp_path / "bright.png").write_bytes(png_of_16_bits(values))
    read = np.asarray(open_baseline(tmp_path).load(0)[0]).astype(int)
    colours = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
    assert abs(read - colours / 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16])
@pytest.mark.parametrize("saved", [True, False])
def test_eight_bits_in_another_container_are_no_black_picture(tmp_path, dtype, saved):
    image = Image.fromarray(PIXELS[..., 0].astype(dtype))
    assert image.mode in ("I", "F", "I;16")
    if saved:
        image.save(tmp_path / "p.tiff")
        (tmp_path / "p.tiff").rename(tmp_path / "p.png")
    images = tmp_path if saved else [image]
    with pytest.raises(ImagesError, match=r"convert it to 8 bits"):
        open_baseline(images).load(0)


def test_black_is_black_in_every_range(tmp_path):
    Image.fromarray(np.zeros((5, 5), np.uint16)).save(tmp_path / "black.png")
    assert not np.asarray(open_baseline(tmp_path).load(0)[0]).any()


# Orientation


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_exif_says(tmp_path, suffix, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(PIXELS).save(tmp_path / f"p.{suffix}", exif=exif)
    with Image.open(tmp_path / f"p.{suffix}") as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    read = open_baseline(tmp_path).load(0)[0]
    assert read.size == ((40, 60) if orientation >= 5 else (60, 40))
    np.testing.assert_array_equal(np.asarray(read), expected)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_baseline(tmp_path).load(0)[0]), PIXELS)


# Files that are none, and pictures of many kinds


def unusual(folder: Path, kind: str) -> None:
    path = folder / "x.jpg"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(folder)  # a socket's path must be short
        try:
            socket.socket(socket.AF_UNIX).bind("x.jpg")
        finally:
            os.chdir(here)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link to nowhere":
        path.symlink_to("nowhere")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to nowhere"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_only_regular_files_are_read(tmp_path, kind):
    Image.fromarray(PIXELS).save(tmp_path / "whole.png")
    unusual(tmp_path, kind)
    for images in (tmp_path, [tmp_path / "x.jpg"]):
        with pytest.raises(ImagesError, match=r"x\.jpg'"):
            open_baseline(images).load(0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no such files here")
def test_a_marked_copy_is_a_regular_file_too(tmp_path):
    for name in ("plain", "marked"):
        (tmp_path / name).mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "plain" / "a.png")
    os.mkfifo(tmp_path / "marked" / "a.jpg")
    scenario = wm.PairedFolder("copy", tmp_path / "marked")
    batches = wm.probing_batches(tmp_path / "plain", [scenario])
    with pytest.raises(ImagesError, match=r"no marked copy of 'a\.png'"):
        next(iter(batches))


def test_what_is_handed_to_other_programs_is_not_read(tmp_path):
    """Pillow runs Ghostscript on EPS, whatever such a file is called."""
    Image.fromarray(PIXELS).save(tmp_path / "p.eps")
    (tmp_path / "p.eps").rename(tmp_path / "p.jpg")
    with pytest.raises(ImagesError, match=r"cannot read '.*p\.jpg'"):
        open_baseline(tmp_path).load(0)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"BM"])
def test_files_of_nothing(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImagesError, match=r"cannot read '.*x\.jpg': ."):
        open_baseline(tmp_path).load(0)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("CMYK", {"format": "JPEG"}), ("YCbCr", {"format": "JPEG"}), ("LA", {}), ("RGBA", {}),
     ("1", {}), ("PA", {"format": "TIFF"}), ("LAB", {"format": "TIFF"}),
     ("P", {"format": "GIF"})],
)  # fmt: skip
def test_other_modes_become_rgb(tmp_path, mode, options):
    smooth = Image.fromarray(PIXELS[:4, :6]).resize((60, 40))
    if mode == "PA":
        image = smooth.convert("P").convert("PA")
    elif mode == "LAB":
        image = Image.merge("LAB", smooth.split())
    else:
        image = smooth.convert(mode)
    image.save(tmp_path / "p.png", **options)
    read = open_baseline(tmp_path).load(0)[0]
    assert (read.mode, read.size) == ("RGB", (60, 40))
    assert np.asarray(read).std() > 5


# Memory


@pytest.mark.parametrize("size", [(300_000, 2), (2, 300_000)])
@pytest.mark.parametrize("geometry", [None, lambda image: pytest.fail("it was scaled")])
def test_a_strip_is_refused_before_it_fills_the_memory(tmp_path, size, geometry):
    Image.new("RGB", size).save(tmp_path / "strip.png")
    preprocess = wm.Preprocessing(size=(224, 224), resize=256, geometry=geometry)
    batches = wm.probing_batches(tmp_path, ["latin"], preprocess=preprocess)
    with pytest.raises(ImagesError, match=r"'strip\.png' has \d+x\d+ px and would be resized to"):
        next(iter(batches))


def test_a_strip_is_no_key_image_either(tmp_path):
    Image.new("RGB", (300_000, 2)).save(tmp_path / "strip.png")
    with pytest.raises(ImagesError, match=r"'strip\.png' has 300000x2 px"):
        read_pixels(tmp_path, wm.Preprocessing(size=(224, 224), resize=256), None, 0)


def test_a_strip_that_is_squeezed_is_read(tmp_path):
    Image.new("RGB", (300_000, 2)).save(tmp_path / "strip.png")
    preprocess = wm.Preprocessing(size=(32, 32), resize=(32, 32))
    (batch,) = wm.probing_batches(tmp_path, ["latin"], preprocess=preprocess)
    assert batch.images.shape == (1, 3, 32, 32)


def test_a_picture_that_is_far_too_large_is_refused(tmp_path):
    content = png_of_16_bits(np.zeros((1, 1, 3)))
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(content[:8] + chunk(b"IHDR", header) + content[33:])
    with pytest.raises(ImagesError, match=r"cannot read '.*bomb\.png': .*exceeds limit"):
        open_baseline(tmp_path).load(0)


# Marked copies


@pytest.mark.parametrize("what", ["another picture", "inverted", "brighter", "noise"])
def test_copies_that_differ_nearly_everywhere_are_refused(tmp_path, what):
    smooth = np.asarray(Image.fromarray(PIXELS[:5, :5]).resize((96, 96), Image.Resampling.BICUBIC))
    copies = {
        "another picture": RNG.permutation(smooth.reshape(-1, 3)).reshape(smooth.shape),
        "inverted": 255 - smooth,
        "brighter": (smooth // 2 + 40).astype(np.uint8),
        "noise": RNG.integers(0, 256, smooth.shape, dtype=np.uint8),
    }
    original = smooth // 2 if what == "brighter" else smooth
    marked = original.copy()
    marked[30:50, 10:80] = 255
    for name, first, second in (("plain", original, original), ("marked", marked, copies[what])):
        (tmp_path / name).mkdir()
        Image.fromarray(first).save(tmp_path / name / "a.png")
        Image.fromarray(second).save(tmp_path / name / "b.png")
    scenario = wm.PairedFolder("copy", tmp_path / "marked")
    batches = wm.probing_batches(tmp_path / "plain", [scenario], preprocess="none", batch_size=1)
    with pytest.raises(ImagesError, match=r"b\.png' differs from its baseline image nearly every"):
        list(batches)


def test_copies_that_are_turned_are_of_another_shape(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name, options in (("plain", {}), ("marked", {"exif": exif})):
        (tmp_path / name).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / name / "a.png", **options)
    batches = wm.probing_batches(tmp_path / "plain", [wm.PairedFolder("c", tmp_path / "marked")])
    with pytest.raises(ImagesError, match=r"a\.png' has 40x60 px, its baseline image 60x40"):
        next(iter(batches))


def test_marked_copies_of_turned_originals_are_pairs(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (tmp_path / "plain").mkdir()
    big = RNG.integers(0, 256, (200, 120, 3), dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / "plain" / "a.png", exif=exif)
    wm.write_marked_folder(tmp_path / "plain", tmp_path / "marked", "latin")
    scenario = wm.PairedFolder("copy", tmp_path / "marked")
    (batch,) = wm.probing_batches(tmp_path / "plain", ["latin", scenario], preprocess="none")
    assert (batch.marked["latin"] == batch.marked["copy"]).all()


def test_marked_copies_saved_as_bad_jpegs_are_pairs(tmp_path):
    (tmp_path / "plain").mkdir()
    smooth = Image.fromarray(PIXELS).resize((224, 224), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "plain" / "a.png")
    wm.write_marked_folder(tmp_path / "plain", tmp_path / "marked", "latin")
    (tmp_path / "bad").mkdir()
    Image.open(tmp_path / "marked" / "a.png").save(tmp_path / "bad" / "a.jpg", quality=20)
    batches = wm.probing_batches(tmp_path / "plain", [wm.PairedFolder("c", tmp_path / "bad")])
    assert len(list(batches)) == 1
