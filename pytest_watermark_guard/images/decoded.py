"""A folder's images at a model's input size, decoded once and kept as a memory-mapped array.

Each with a digest of its file: one that has changed is decoded again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from pytest_watermark_guard.caching.keys import NoKeyError, digest
from pytest_watermark_guard.caching.store import NewArray, Store, cache_bytes
from pytest_watermark_guard.images.baseline import Baseline
from pytest_watermark_guard.version import __version__

Pixels = npt.NDArray[np.uint8]
_FORMAT = "images/3"  # raise the number when a file would give other pixels
_LARGEST_SHARE = 0.25  # of the cache; more would drive everything else out


class DecodedImages:
    """Gives images that are kept, and keeps a folder's images once all of them were seen.

    `geometry` is what makes the pixels out of a file; its first entry is (height, width). Raises
    `NoKeyError` if nothing is known of the baseline's images.
    """

    def __init__(
        self, store: Store, baseline: Baseline, geometry: tuple[tuple[int, int], object]
    ) -> None:
        names = sorted(baseline.identities)
        self._rows = {name: row for row, name in enumerate(names)}
        self._store = store
        versions = __version__, PIL.__version__
        self._contents = baseline.contents
        listing = baseline.contents.listing(names)
        self._key = digest(_FORMAT, listing, names, geometry, versions)
        self._row = np.dtype([("content", "u1", (32,)), ("pixels", "u1", (*geometry[0], 3))])
        self._new: NewArray | None = None
        self._seen: set[int] = set()
        self._lock = threading.Lock()

    @cached_property
    def _kept(self) -> npt.NDArray[np.void] | None:
        # Not before an image is asked for: all bytes are read, to see whether any is damaged.
        return self._store.get_array("images", self._key, check=self._fits)

    def _fits(self, kept: npt.NDArray[Any]) -> bool:
        return kept.dtype == self._row and kept.shape == (len(self._rows),)

    @property
    def complete(self) -> bool:
        """Whether all images are kept already."""
        return self._kept is not None

    def get(self, identity: str) -> Pixels | None:
        """Return an image's pixels, uint8 [H, W, 3], if they are kept and its file is the same."""
        if self._kept is None:
            return None
        row = self._kept[self._rows[identity]]
        with suppress(NoKeyError):
            if self._contents.digests([identity]) == [row["content"].tobytes()]:
                pixels: Pixels = row["pixels"]
                return pixels
        # The next run keeps them all anew.
        self._store.remove_array("images", self._key)
        return None

    def put(self, identity: str, pixels: Pixels) -> None:
        """Take note of an image that was decoded."""
        new = self._new
        if new is not None:
            row = self._rows[identity]
            new.values["pixels"][row] = pixels
            with self._lock:
                self._seen.add(row)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep the images that are put within the block, if in the end these are all."""
        size = len(self._rows) * self._row.itemsize
        if self.complete or size > _LARGEST_SHARE * cache_bytes():
            yield
            return
        with ExitStack() as stack:
            self._seen.clear()
            # Without room for them, they are decoded again the next time.
            with suppress(OSError):
                new = self._store.new_array("images", self._key, (len(self._rows),), self._row)
                self._new = stack.enter_context(new)
            try:
                yield
                if self._new is not None and len(self._seen) == len(self._rows):
                    self._keep(self._new)
            finally:
                self._new = None

    def _keep(self, new: NewArray) -> None:
        with suppress(NoKeyError):  # a file that changed meanwhile
            digests = self._contents.digests([*self._rows])
            new.values["content"] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
            new.keep()
