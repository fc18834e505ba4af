"""Image files: finding them, pairing them."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.images.decoding import check_regular

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
        names = [n for n in files if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
        with os.scandir(parent) as entries:
            odd = {entry.name for entry in entries if not entry.is_file()}
        # A pipe or a device would be waited for, here and wherever its content is digested.
        for name in odd.intersection(names):
            check_regular(Path(parent, name))
        paths += [Path(parent, name) for name in names]
    if not paths:
        raise ImagesError(
            f"images: no image in {str(root)!r} or below it; looked for {', '.join(SUFFIXES)}"
        )
    return sorted(paths, key=lambda path: path.relative_to(root).as_posix())


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
        if path.stem == exact.stem and path.suffix.lower() in SUFFIXES and path.is_file()
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
