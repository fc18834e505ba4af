"""Image files of strangers: each is an RGB picture of bounded size, or an ImagesError."""

from __future__ import annotations

import io
import warnings

import numpy as np
from fuzzing import bounded_memory, counted, told, tried
from mutating import mutants
from PIL import Image

from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.images.decoding import read_image

MOST_PIXELS = 20_000


def seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (12, 17, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    frames = [palette, palette.rotate(180)]
    ways = [
        (rgb, {"format": "PNG", "exif": exif}),
        (palette, {"format": "PNG", "transparency": bytes(range(16))}),
        (rgb.convert("RGBA"), {"format": "PNG", "save_all": True, "append_images": frames}),
        (rgb.convert("LA"), {"format": "PNG"}),
        (rgb.convert("1"), {"format": "PNG"}),
        (Image.fromarray(rng.integers(0, 65536, (5, 6), dtype=np.uint16)), {"format": "PNG"}),
        (rgb, {"format": "JPEG", "exif": exif}),
        (rgb, {"format": "JPEG", "progressive": True, "icc_profile": b"x" * 99}),
        (rgb.convert("CMYK"), {"format": "JPEG"}),
        (rgb, {"format": "MPO", "save_all": True, "append_images": [rgb]}),
        (palette, {"format": "GIF", "save_all": True, "append_images": frames, "transparency": 3}),
        (rgb, {"format": "TIFF"}),
        (rgb, {"format": "TIFF", "compression": "tiff_lzw"}),
        (rgb.convert("1"), {"format": "TIFF", "compression": "group4"}),
        (rgb.convert("F"), {"format": "TIFF"}),
        (rgb, {"format": "WEBP", "exif": exif}),
        (rgb, {"format": "WEBP", "lossless": True}),
        (rgb, {"format": "BMP"}),
        (palette, {"format": "BMP"}),
        (rgb, {"format": "PPM"}),
    ]
    files = []
    for image, options in ways:
        file = io.BytesIO()
        image.save(file, **options)
        files.append(file.getvalue())
    return files


def test_image_files(tmp_path, monkeypatch, record_property):
    # What is larger than twice this is refused by its header, before memory is given to it.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MOST_PIXELS // 2)
    path = tmp_path / "x.jpg"

    def load(path):
        image = read_image(path)
        assert image.mode == "RGB"
        assert image.width * image.height <= MOST_PIXELS

    contents = mutants(seeds(), told("images"), 1)
    with bounded_memory(), warnings.catch_warnings():
        warnings.simplefilter("error")
        read, refused = tried(path, contents, load, ImagesError)
    counted(record_property, "image files", told("images"), read, refused)
    assert read > 500
    assert refused > 500
