"""A few photos that someone else's preprocessing is tried on."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

from PIL import Image

_SHORT = 334


@cache
def _photo(name: str) -> Image.Image:
    # Found without an import of scikit-learn, which would take a second.
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "datasets" / "images" / name) as image:
        return image.convert("RGB")


def photos() -> list[Image.Image]:
    """Return wide and tall photos.

    Their long sides differ so that some crops fall between two pixels, the first of them odd or
    even: libraries round them in different ways.
    """
    wide, tall = _photo("china.jpg"), _photo("flower.jpg").transpose(Image.Transpose.ROTATE_90)
    return [
        *(
            wide.resize((long, _SHORT), Image.Resampling.BICUBIC)
            for long in (501, 506, 511, 560, 570)
        ),
        *(tall.resize((_SHORT, long), Image.Resampling.BICUBIC) for long in (501, 503, 537)),
    ]


def exact(size: tuple[int, int]) -> Image.Image:
    """Return a photo of this height and width."""
    height, width = size
    return _photo("china.jpg").resize((width, height), Image.Resampling.BICUBIC)
