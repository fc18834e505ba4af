"""Activations as they come in, in memory or, where they are many, in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
_BLOCK = 16 * 2**20  # bytes read at once


class ActivationBuffer:
    """An array [n, units] that grows by rows and is read by columns.

    Parameters
    ----------
    folder : str or Path, optional
        Where to keep the rows; default in memory.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = folder
        self._parts: list[Array] = []
        self._file: IO[bytes] | None = None
        self._length = 0
        self._like: Array | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def units(self) -> int:
        """Number of columns; 0 before the first row."""
        return 0 if self._like is None else int(self._like.shape[1])

    @property
    def size(self) -> int:
        """Number of bytes."""
        return 0 if self._like is None else self._length * self.units * self._like.itemsize

    @property
    def spilled(self) -> bool:
        """Whether the rows lie in a file."""
        return self._folder is not None

    def append(self, rows: Array) -> None:
        """Add rows, shape [k, units]."""
        if self._like is None:
            self._like = np.empty((0, rows.shape[1]), rows.dtype)
        self._length += len(rows)
        if self._folder is None:
            self._parts.append(rows)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - see close
        self._file.write(np.ascontiguousarray(rows, self._like.dtype).data)

    def truncate(self, length: int) -> None:
        """Forget all rows from `length` on."""
        self._length = min(self._length, length)

    def columns(self, start: int = 0, stop: int | None = None) -> Array:
        """Return columns `start` to `stop` of all rows, shape [n, stop − start]."""
        if self._like is None:
            return np.empty((0, 0), np.float32)
        if self._file is not None:
            return self._read(self._file, self._like, slice(start, stop))
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        together: Array = self._parts[0][: self._length, start:stop]
        return together

    def chosen(self, units: Sequence[int]) -> Array:
        """Return some columns of all rows, shape [n, len(units)]; of a file no others are kept."""
        if self._file is not None and self._like is not None:
            return self._read(self._file, self._like, list(units))
        return self.columns()[:, list(units)]

    def _read(self, file: Any, like: Array, wanted: slice | list[int]) -> Array:
        # Plain reads, not a memory map: pages of a map count as the process's memory.
        result = np.empty((self._length, len(np.arange(self.units)[wanted])), like.dtype)
        height = max(1, _BLOCK // (self.units * like.itemsize))
        block = np.empty((height, self.units), like.dtype)
        file.seek(0)
        for first in range(0, self._length, height):
            part = block[: min(height, self._length - first)]
            file.readinto(part)
            result[first : first + len(part)] = part[:, wanted]
        file.seek(0, 2)
        return result

    def close(self) -> None:
        """Give memory and file back."""
        self._parts = []
        if self._file is not None:
            self._file.close()
