"""The images that a probe starts from, whatever they came as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pytest_watermark_guard.caching.keys import NoKeyError, digest
from pytest_watermark_guard.errors import ImagesError
from pytest_watermark_guard.images import builtin, folder
from pytest_watermark_guard.images.arrays import image_from_array
from pytest_watermark_guard.images.contents import (
    ArrayContents,
    BuiltinContents,
    Contents,
    FileContents,
    UnknownContents,
)
from pytest_watermark_guard.images.decoding import as_rgb, read_image
from pytest_watermark_guard.setting_values import user_path
from pytest_watermark_guard.watermarks.draw import uniform_words


@dataclass(frozen=True)
class Baseline:
    """Unmarked images, each with a name that its watermark is drawn for."""

    description: str  # for people: which images these are
    identities: tuple[str, ...]  # all different; the watermark's draw depends on it
    # Position in `identities` -> RGB image, or (RGB image, label).
    read: Callable[[int], Image.Image | tuple[Image.Image, int]]
    # True class indices by identity, over any that `read` knows.
    labels: Mapping[str, int] = field(default_factory=dict)
    root: Path | None = None  # the folder that `identities` are relative to, where there is one
    concurrent: bool = False  # `read` may be called from several threads; a Dataset's may not
    contents: Contents = field(default_factory=UnknownContents)  # by identity

    def __len__(self) -> int:
        return len(self.identities)

    def load(self, position: int) -> tuple[Image.Image, int | None]:
        """Read one image and, where it is known, its label; `ImagesError` if it cannot be read."""
        item = self.read(position)
        image, label = item if isinstance(item, tuple) else (item, None)
        return image, self.labels.get(self.identities[position], label)

    def content(self) -> str:
        """Return a digest of the images, whatever their order; others of a folder are not read.

        Raises
        ------
        NoKeyError
            Where their content has no digest.
        """
        return self.contents.together(sorted(self.identities))

    def fingerprint(self) -> str:
        """Return a short digest of the images, whatever their folder and order.

        Empty where their content has no digest.
        """
        try:
            return digest(self.content(), sorted(self.identities))[:16]
        except NoKeyError:
            return ""

    def subset(self, count: int, seed: int) -> Baseline:
        """Keep `count` images: a random choice that depends on `seed` and the identities only.

        The first ones of a sorted folder would be no sample: in ImageNet they are all animals.
        """
        if count >= len(self):
            return self
        chosen = self.take(sorted(self._order(seed)[:count]))
        return replace(chosen, description=f"{count} of {self.description}")

    def _order(self, *key: object) -> list[int]:
        return sorted(
            range(len(self)), key=lambda i: next(uniform_words(1, *key, self.identities[i]))
        )

    def shuffled(self, seed: int) -> Baseline:
        """Put the images in an order that depends on `seed` and the identities only."""
        return self.take(self._order("order", seed))

    def take(self, positions: Sequence[int]) -> Baseline:
        """Keep the images at these positions."""
        return replace(
            self,
            identities=tuple(self.identities[i] for i in positions),
            read=lambda position: self.read(positions[position]),
        )


def open_baseline(
    images: Any = None, labels: Sequence[int] | Mapping[str, int] | None = None
) -> Baseline:
    """Open baseline images; `ImagesError` if there is none, or `images` or `labels` do not fit.

    `images` are None or "builtin" (the built-in set), a folder (every JPEG, PNG, WebP and BMP below
    it), a Dataset or sequence (of PIL images, arrays, tensors, (image, label) pairs or dicts with
    "image" or "pixel_values"), or an array or tensor (shape [N, H, W, 3] or [N, 3, H, W], uint8, or
    floating point in [0, 1]). `labels` are true class indices, one for each image in order, or by
    identity.
    """
    baseline = images if isinstance(images, Baseline) else _open(images)
    if labels is None:
        return baseline
    if not isinstance(labels, Mapping):
        if len(labels) != len(baseline):
            raise ImagesError(f"labels: got {len(labels)} of them for {baseline.description}")
        labels = dict(zip(baseline.identities, labels, strict=True))
    elif unknown := labels.keys() - set(baseline.identities):
        raise ImagesError(f"labels: {sorted(unknown)[0]!r} is not among the {baseline.description}")
    for identity, label in labels.items():
        if not isinstance(label, Integral):
            raise ImagesError(f"labels: expected a class index for {identity!r}, got {label!r}")
    return replace(baseline, labels={name: int(label) for name, label in labels.items()})


def is_builtin(images: Any) -> bool:
    """Tell whether the built-in set was asked for."""
    return images is None or (isinstance(images, str) and images == "builtin")


def _open(images: Any) -> Baseline:
    if is_builtin(images):
        return _of_builtin(builtin.BuiltinImages())
    if isinstance(images, str | Path):
        root = user_path("images", images)
        paths = folder.image_paths(root)
        names = tuple(path.relative_to(root).as_posix() for path in paths)
        return Baseline(
            f"{len(paths)} images of {images}",
            names,
            lambda position: read_image(paths[position]),
            root=root,
            concurrent=True,
            contents=FileContents(root),
        )
    if not hasattr(images, "__getitem__") or not hasattr(images, "__len__"):
        raise ImagesError(
            "images must be None (the built-in set), a folder, a map-style Dataset (of a "
            "DataLoader: its dataset), a sequence of images, or an array or tensor of them; "
            f"got {type(images).__name__}"
        )
    count = len(images)
    if count == 0:
        raise ImagesError(
            f"images: this {type(images).__name__} is empty; there is nothing to probe"
        )
    in_memory = isinstance(images, np.ndarray | torch.Tensor)
    if in_memory and images.ndim != 4:
        raise ImagesError(
            "images: an array of images has shape [N, H, W, 3] or [N, 3, H, W], "
            f"got {list(images.shape)}"
        )
    kind = "an" if type(images).__name__[0] in "AEIOUaeiou" else "a"
    return Baseline(
        f"{count} images of {kind} {type(images).__name__}",
        tuple(map(str, range(count))),
        lambda position: _read_item(images, position),
        concurrent=in_memory,
        contents=ArrayContents(images) if in_memory else UnknownContents(),
    )


@lru_cache(maxsize=1)
def first_builtin(count: int) -> Baseline:
    """Open the first images of the built-in set alone."""
    return _of_builtin(builtin.BuiltinImages(count))


def _of_builtin(images: builtin.BuiltinImages) -> Baseline:
    return Baseline(
        f"{len(images)} images of the built-in set {builtin.BUILTIN_NAME}",
        tuple(f"{builtin.BUILTIN_NAME}/{index}" for index in range(len(images))),
        lambda position: Image.fromarray(images[position]),
        concurrent=True,
        contents=BuiltinContents(images),
    )


def _read_item(images: Sequence[Any], position: int) -> Image.Image | tuple[Image.Image, int]:
    where = f"images[{position}]"
    item, label = images[position], None
    if isinstance(item, dict):
        label = item.get("label", item.get("labels"))
        item = item.get("image", item.get("pixel_values"))
    elif isinstance(item, tuple | list):
        if len(item) > 1:
            label = item[1]
        item = item[0] if item else None
    if isinstance(item, str | Path):
        image = read_image(Path(item))
    elif isinstance(item, Image.Image):
        image = as_rgb(item, where)
    elif isinstance(item, np.ndarray | torch.Tensor):
        image = image_from_array(item, where)
    else:
        raise ImagesError(
            f"{where}: expected a PIL image, an array, a tensor or a path (or a pair or dict that "
            f"holds one), got {type(item).__name__}"
        )
    if isinstance(label, np.ndarray | torch.Tensor | np.generic) and label.ndim == 0:
        label = label.item()
    # Labels that are no class index (captions, boxes, one-hot vectors) are no use to top-1.
    return (image, label) if isinstance(label, int) else image
