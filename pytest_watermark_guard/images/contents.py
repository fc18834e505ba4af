"""What tells baseline images from others: at once from outside, by their contents when used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pytest_watermark_guard.caching.keys import NoKeyError, digest
from pytest_watermark_guard.images.builtin import BuiltinImages

_AT_ONCE = 64  # files
_Look = tuple[int, int, int]
"""A file's size, and when its content and its entry were changed last."""


class Contents(Protocol):
    """Contents of images, by their names.

    All methods raise `NoKeyError` where nothing tells an image from another of its name.
    """

    def listing(self, names: Sequence[str]) -> object:
        """Return what is known of images without reading any."""

    def digests(self, names: Sequence[str]) -> list[bytes]:
        """Return a digest of each image, 32 bytes; no others are read."""

    def together(self, names: Sequence[str]) -> str:
        """Return one digest of images, the same in all versions of the package."""


class UnknownContents:
    """Those of a Dataset or sequence: it may give others the next time."""

    def listing(self, names: Sequence[str]) -> object:
        """Raise `NoKeyError`."""
        raise NoKeyError("images: a Dataset or sequence may give others the next time")

    def digests(self, names: Sequence[str]) -> list[bytes]:
        """Raise `NoKeyError`."""
        self.listing(names)
        raise AssertionError

    def together(self, names: Sequence[str]) -> str:
        """Raise `NoKeyError`."""
        self.listing(names)
        raise AssertionError


class FileContents:
    """Those of files in a folder, each read once; one that changes meanwhile has no digest."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._looks: dict[str, _Look] = {}
        self._digests: dict[str, bytes] = {}

    def listing(self, names: Sequence[str]) -> list[int]:
        """Return the files' sizes; from now on they must stay as they are."""
        try:
            for name in names:
                if name not in self._looks:
                    self._looks[name] = _look(os.stat(self._path(name)))  # noqa: PTH116 - speed
        except OSError as error:
            raise NoKeyError(f"{error.filename}: {error.strerror}") from error
        return [self._looks[name][0] for name in names]

    def digests(self, names: Sequence[str]) -> list[bytes]:
        """Return a digest of each file's content, in order."""
        self.listing(names)
        missing = [name for name in names if name not in self._digests]
        groups = [missing[at : at + _AT_ONCE] for at in range(0, len(missing), _AT_ONCE)]
        try:
            if len(groups) > 1:
                with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                    list(pool.map(self._read, groups))
            else:
                self._read(missing)
            # What was read before or is read later than this must be the same.
            for name in names:
                self._check(name, os.stat(self._path(name)))  # noqa: PTH116 - speed
        except OSError as error:
            raise NoKeyError(f"{error.filename}: {error.strerror}") from error
        return [self._digests[name] for name in names]

    def together(self, names: Sequence[str]) -> str:
        """Return a digest of the files' names and contents, in order."""
        return digest(list(names), self.digests(names))

    def _read(self, names: Sequence[str]) -> None:
        for name in names:
            with open(self._path(name), "rb", buffering=0) as file:  # noqa: PTH123 - speed
                self._check(name, os.fstat(file.fileno()))
                self._digests[name] = hashlib.sha256(file.read()).digest()

    def _check(self, name: str, state: os.stat_result) -> None:
        if _look(state) != self._looks[name]:
            raise NoKeyError(f"{self._path(name)} changed while it was probed")

    def _path(self, name: str) -> str:
        return os.path.join(self._root, name)  # noqa: PTH118 - speed


class ArrayContents:
    """Those of an array's or tensor's rows, whose names are their numbers."""

    def __init__(self, images: Any) -> None:
        self._images = images
        self._digests: dict[str, str] = {}

    def listing(self, names: Sequence[str]) -> object:
        """Return the shape, and the type of the values."""
        return [*self._images.shape], str(self._images.dtype)

    def digests(self, names: Sequence[str]) -> list[bytes]:
        """Return a digest of each row, in order."""
        return [bytes.fromhex(self._digest(name)) for name in names]

    def together(self, names: Sequence[str]) -> str:
        """Return a digest of rows, in order."""
        return digest([self._digest(name) for name in names])

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            self._digests[name] = digest(self._images[int(name)])
        return self._digests[name]


class BuiltinContents:
    """Those of the built-in set: known without painting any."""

    def __init__(self, images: BuiltinImages) -> None:
        self._images = images

    def listing(self, names: Sequence[str]) -> object:
        """Return what tells this platform's images from another's."""
        return self.together(names)

    def digests(self, names: Sequence[str]) -> list[bytes]:
        """Return a digest for each image."""
        content = self._images.content.encode()
        return [hashlib.sha256(content + name.encode()).digest() for name in names]

    def together(self, names: Sequence[str]) -> str:
        """Return a digest of images, in order."""
        return digest(self._images.content, tuple(names))


def _look(state: os.stat_result) -> _Look:
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns
