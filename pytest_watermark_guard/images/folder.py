"""Image files: finding them, reading them, pairing them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from pytest_watermark_guard.errors import ImagesError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def image_paths(root: Path) -> list[Path]:
    """List the images below a folder, sorted; hidden files and folders are left out."""
    if not root.is_dir():
        raise ImagesError(
            f"images: {str(root)!r} is not a folder; pass one that holds "
            f"{', '.join(SUFFIXES)} files, or leave images out for the built-in set"
        )
    paths = []
    seen = set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        # A link to a parent folder would be followed for ever.
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            Path(parent, name)
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not paths:
        raise ImagesError(
            f"images: no image in {str(root)!r} or below it; looked for {', '.join(SUFFIXES)}"
        )
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


def read_image(path: Path) -> Image.Image:
    """Read a file as an RGB image."""
    try:
        with Image.open(path) as image:
            return as_rgb(image, str(path))
    except ImagesError:
        raise
    except Exception as error:  # decoders are an open set, and so is what they raise
        raise ImagesError(
            f"images: cannot read {str(path)!r}: {error}. Remove or replace the file; "
            "a probe leaves no image out by itself"
        ) from error


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """Convert an image to 8-bit RGB without transparency; `ImagesError` if its range is unknown."""
    if image.mode.startswith("I"):
        # Pillow's own conversion would clip 16 bits to white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImagesError(f"{where}: 32-bit values have no known range; convert it to 8 bits")
        image = Image.fromarray(np.rint(values / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ImagesError(
            f"{where}: floating-point values have no known range; convert it to 8 bits"
        )
    return image.convert("RGB")


def _unreadable(error: OSError) -> None:
    raise ImagesError(f"images: cannot read folder {error.filename!r}: {error.strerror}") from error


def paired_path(folder: Path, identity: str) -> Path:
    """Find the marked copy of an image, whose `identity` is its path within the baseline folder."""
    exact = folder / identity
    if exact.is_file():
        return exact
    same_stem = [
        path
        for path in sorted(exact.parent.glob("*"))
        if path.stem == exact.stem and path.suffix.lower() in SUFFIXES
    ]
    if len(same_stem) == 1:
        return same_stem[0]
    if same_stem:
        names = ", ".join(path.name for path in same_stem)
        raise ImagesError(f"marked copy of {identity!r} in {str(folder)!r} is ambiguous: {names}")
    raise ImagesError(
        f"no marked copy of {identity!r} in {str(folder)!r}; a paired folder holds one file under "
        "the same name for every baseline image"
    )
