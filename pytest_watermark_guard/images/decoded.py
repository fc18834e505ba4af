"""A folder's images at a model's input size, decoded once and kept as a memory-mapped array."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from pytest_watermark_guard.caching.keys import digest
from pytest_watermark_guard.caching.store import NewArray, Store, cache_bytes
from pytest_watermark_guard.images.baseline import Baseline
from pytest_watermark_guard.version import __version__

Pixels = npt.NDArray[np.uint8]
_FORMAT = "images/2"  # raise the number when a file would give other pixels
_LARGEST_SHARE = 0.25  # of the cache; more would drive everything else out


class DecodedImages:
    """Gives images that are kept, and keeps a folder's images once all of them were seen.

    `geometry` is what makes the pixels out of a file; its first entry is (height, width). Raises
    `NoKeyError` if the baseline's content has no digest.
    """

    def __init__(
        self, store: Store, baseline: Baseline, geometry: tuple[tuple[int, int], object]
    ) -> None:
        names = sorted(baseline.identities)
        self._rows = {name: row for row, name in enumerate(names)}
        self._store = store
        versions = __version__, PIL.__version__
        self._key = digest(_FORMAT, baseline.content(), names, geometry, versions)
        self._shape = (len(names), *geometry[0], 3)
        self._new: NewArray | None = None
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    @cached_property
    def _kept(self) -> Pixels | None:
        # Not before an image is asked for: all bytes are read, to see whether any is damaged.
        return self._store.get_array("images", self._key, check=self._fits)

    def _fits(self, pixels: npt.NDArray[Any]) -> bool:
        return pixels.dtype == np.uint8 and pixels.shape == self._shape

    @property
    def complete(self) -> bool:
        """Whether all images are kept already."""
        return self._kept is not None

    def get(self, identity: str) -> Pixels | None:
        """Return an image's pixels, uint8 [H, W, 3], if they are kept."""
        return None if self._kept is None else self._kept[self._rows[identity]]

    def put(self, identity: str, pixels: Pixels) -> None:
        """Take note of an image that was decoded."""
        new = self._new
        if new is not None:
            row = self._rows[identity]
            new.values[row] = pixels
            with self._lock:
                self._seen.add(row)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the images that are put within the block, if in the end these are all."""
        if self.complete or np.prod(self._shape) > _LARGEST_SHARE * cache_bytes():
            yield
            return
        with ExitStack() as stack:
            self._seen.clear()
            # Without room for them, they are decoded again the next time.
            with suppress(OSError):
                new = self._store.new_array("images", self._key, self._shape, np.uint8)
                self._new = stack.enter_context(new)
            try:
                yield
                if self._new is not None and len(self._seen) == len(self._rows):
                    self._new.keep()
            finally:
                self._new = None
