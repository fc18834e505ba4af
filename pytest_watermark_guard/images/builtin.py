"""
Built-in baseline images, painted from the two sample photos of scikit-learn.

The images are collages: crops of the two photos at many scales, recoloured, then blended, cut
into overlapping objects and bars, framed or tiled, with defocus and grain. Variety is the point.
On bland or uniform images, a watermark stands out more than it does on photos, and units look
more sensitive to it than they are; on images nearly as varied as photos, units rank much as they
do on photos. The five families come in turn, so the first images are a balanced sample as well.

How they are painted (`images.painting`) leaves nothing to the platform; `SHA256` says which bytes
are meant. A Pillow linked against another JPEG decoder than libjpeg-turbo may decode the photos a
little differently. An image is painted when it is asked for: a gate that ends early asks for few.

The photos are ``china.jpg`` by danielbuechele
(https://www.flickr.com/photos/danielbuechele/6061409035/) and ``flower.jpg`` by vultilion
(https://www.flickr.com/photos/vultilion/6056698931/), both under CC BY 2.0
(https://creativecommons.org/licenses/by/2.0/) and shipped with scikit-learn. The images made here
are adaptations of them.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_watermark_guard.caching.files import write_atomically
from pytest_watermark_guard.caching.store import cache_folder
from pytest_watermark_guard.images.painting import digest_of_photos, painted

COUNT = 256
VERSION = 1
SHA256 = "081038d0979f408a18dc0a53cfee1b73021e509b4f67604cc8789ff4349fbc9b"
PHOTOS_SHA256 = "99310b92a8963a4b9118f3a93695bf9d2f7c20a03361f1962972901ccd5560da"
BUILTIN_NAME = f"v{VERSION}"

_KEY = f"watermark-guard/{VERSION}"


class BuiltinImages:
    """The first images of the built-in set: from the cache, else painted as they are asked for.

    When all of the set were painted, they are kept. Images may be asked for in several threads.

    Parameters
    ----------
    count : int, default COUNT

    Warns
    -----
    UserWarning
        If the cached file was damaged, if it cannot be written, or if this platform paints other
        bytes than the published ones.
    """

    def __init__(self, count: int = COUNT) -> None:
        self._count = count
        path = _path()
        kept, damaged = _kept(path)
        self._images: dict[int, NDArray[np.uint8]] = {} if kept is None else dict(enumerate(kept))
        self._painting = self._keep = kept is None
        self._lock = threading.Lock()
        if damaged:
            # First it goes, then a warning, which may be an error.
            with suppress(OSError):
                path.unlink()
            warnings.warn(f"{path} is damaged; the images are painted again", stacklevel=2)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if not 0 <= index < self._count:
            raise IndexError(index)
        image = self._images.get(index)
        if image is None:
            self._check_photos()
            image = painted(_KEY, index)
            with self._lock:
                self._images[index] = image
                complete = self._keep and len(self._images) == COUNT
                self._keep &= not complete
            if complete:
                self._write()
        return image

    @property
    def content(self) -> str:
        """Tells the bytes of these images from those that another platform paints."""
        photos = digest_of_photos() if self._painting else PHOTOS_SHA256
        return SHA256 if photos == PHOTOS_SHA256 else photos

    def _check_photos(self) -> None:
        if not self._keep or digest_of_photos() == PHOTOS_SHA256:
            return
        self._keep = False
        warnings.warn(
            "the built-in images differ from the published ones on this platform (Pillow's JPEG "
            "decoder may be another); scores may differ slightly from other machines'",
            stacklevel=3,
        )

    def _write(self) -> None:
        path = _path()
        images = np.stack([self._images[index] for index in range(COUNT)])
        try:
            write_atomically(
                path, lambda file: np.save(file, images, allow_pickle=False), durable=False
            )
        except OSError as error:
            warnings.warn(f"the built-in images are not kept in {path}: {error}", stacklevel=3)


def builtin_images() -> NDArray[np.uint8]:
    """Return the built-in set, from the cache where it is there and whole.

    Returns
    -------
    ndarray of uint8, shape [N, 224, 224, 3]

    Warns
    -----
    UserWarning
        As `BuiltinImages`.
    """
    images = BuiltinImages()
    return np.stack([images[index] for index in range(COUNT)])


def _path() -> Path:
    return cache_folder() / f"builtin-{BUILTIN_NAME}.npy"


def _kept(path: Path) -> tuple[NDArray[np.uint8] | None, bool]:
    """Return the images in the file, if it is there and whole, and whether it is damaged."""
    try:
        images: NDArray[np.uint8] = np.load(path, allow_pickle=False)
        return (images, False) if _digest(images) == SHA256 else (None, True)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None, False
    except Exception:  # a damaged file may hold anything
        return None, True


def _digest(images: NDArray[np.uint8]) -> str:
    return hashlib.sha256(images.tobytes()).hexdigest()
