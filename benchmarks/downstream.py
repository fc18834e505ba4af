"""Tasks for heads on an encoder: photos in one folder for each class, to train and to validate."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from mitigation import split
from PIL import Image, ImageFilter

import pytest_watermark_guard as wm

Folders: TypeAlias = tuple[Path, Path]
Tasks: TypeAlias = dict[str, Folders]


def tasks_in(scratch: Path, data: Path, photos: Path) -> Tasks:
    """Write all tasks below a folder."""
    turned, blurred, kinds = (
        (scratch / f"{name}-train", scratch / f"{name}-validation")
        for name in ("turned", "blurred", "kinds")
    )
    return {
        "Caltech-101": split(data / "data" / "caltech-101", scratch),
        # Gidaris et al., 2018
        "how turned": written(
            photos,
            turned,
            [partial(Image.Image.rotate, angle=a, expand=True) for a in (0, 90, 180, 270)],
        ),
        "how blurred": written(
            photos,
            blurred,
            [
                partial(Image.Image.filter, filter=ImageFilter.GaussianBlur(s))
                for s in (0, 2.5, 5, 9)
            ],
        ),
        "kind of thing": by_kind(photos, kinds),
    }


def pictures(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return photos [N, size, size, 3] and the number of each one's subfolder."""
    fit = wm.Preprocessing(size=(size, size), resize=size).fit
    paths = sorted(path for path in folder.glob("*/*") if path.suffix in (".jpg", ".png"))
    names = sorted({path.parent.name for path in paths})
    photos = np.stack([fit(Image.open(path)) for path in paths])
    return photos, np.array([names.index(path.parent.name) for path in paths])


def written(photos: Path, task: Folders, changes: list[Any]) -> Folders:
    """Write every photo under each change, which is to be told; a quarter is for validation."""
    for number, photo in enumerate(shuffled(photos)):
        image = Image.open(photo).convert("RGB")
        for label, change in enumerate(changes):
            saved(change(image), task[number % 4 == 0], label, number)
    return task


def by_kind(photos: Path, task: Folders) -> Folders:
    """Write photos by tenths of the WordNet ids that their names begin with."""
    ids = sorted({photo.name.partition("_")[0] for photo in photos.iterdir()})
    for number, photo in enumerate(shuffled(photos)):
        label = ids.index(photo.name.partition("_")[0]) * 10 // len(ids)
        saved(Image.open(photo).convert("RGB"), task[number % 4 == 0], label, number)
    return task


def shuffled(photos: Path) -> list[Path]:
    paths = sorted(photos.iterdir())
    return [paths[index] for index in np.random.default_rng(1).permutation(len(paths))]


def saved(image: Image.Image, folder: Path, label: int, number: int) -> None:
    target = folder / str(label)
    target.mkdir(parents=True, exist_ok=True)
    image.resize((224, 224)).save(target / f"{number}.png", compress_level=1)
