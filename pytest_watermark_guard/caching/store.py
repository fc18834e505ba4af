"""A bounded folder of results and arrays that can be made again.

Its files are bytes and ``.npy`` arrays without pickles: nothing in them can run.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import re
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
import platformdirs

from pytest_watermark_guard.caching.files import (
    is_abandoned,
    remove_temporary,
    temporary_beside,
    write_atomically,
)
from pytest_watermark_guard.errors import SettingsError

DEFAULT_BYTES = 2 * 2**30
_NAME = "pytest-watermark-guard"
_VARIABLE = "WATERMARK_GUARD_CACHE_BYTES"

_KIND = re.compile(r"[a-z][a-z0-9_-]*")
_KEY = re.compile(r"[0-9a-f]{32,128}")
# Told from other people's files by these names, for only its own are ever removed.
_OWN = re.compile(rf"{_KEY.pattern}\.guard(\.npy)?(\.\w+\.tmp)?")

# Behind the payload, where readers of .npy files do not look: mark, length, checksum.
_TRAILER = struct.Struct("<8sQI")
_MARK = b"wm-guard"
_NAMED = 3  # damaged files in one warning
_BLOCK = 2**20  # bytes

T = TypeVar("T")


def cache_folder() -> Path:
    """Return where files that can be made again are kept.

    ``WATERMARK_GUARD_CACHE`` if set, else the platform's folder for such files.
    """
    if chosen := os.environ.get("WATERMARK_GUARD_CACHE"):
        return Path(chosen)
    try:
        # Older versions of platformdirs leave the "~" of a user without a home folder as it is.
        return platformdirs.user_cache_path(_NAME, appauthor=False).expanduser()
    except RuntimeError:  # no home folder, as in containers that run as a nameless user
        return Path(tempfile.gettempdir()) / _NAME


def cache_bytes() -> int:
    """Return how much may be kept: ``WATERMARK_GUARD_CACHE_BYTES`` if set, else 2 GiB."""
    text = os.environ.get(_VARIABLE, "")
    if not text:
        return DEFAULT_BYTES
    if not (text.isascii() and text.isdigit()):
        raise SettingsError(f"{_VARIABLE} must be a whole number of bytes, got {text!r}")
    return int(text)


class Store:
    """Payloads by kind and key; those not used for longest make room for new ones.

    Several processes may use one folder at once; files of others in it are left alone. `max_bytes`
    bounds the sum of all files. A kind is a lower-case word, a key a hexadecimal digest. Whatever
    goes wrong with the disk costs time only: a damaged file and a folder that cannot be written
    each give one `UserWarning`, after what it tells of is done.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._writable = True
        self._damaged: list[Path] | None = None  # to be warned of later
        self._unwritten = ""  # why nothing is kept, to be warned of later

    def remove_abandoned(self) -> None:
        """Remove what killed processes were writing."""
        with contextlib.suppress(OSError):  # there is no such folder, or it is not ours
            # Only these are looked at: there may be thousands of others.
            for path in self._folder.glob("*/*.tmp"):
                ours = _KIND.fullmatch(path.parent.name) and not path.parent.is_symlink()
                if ours and _OWN.fullmatch(path.name) and is_abandoned(path, path.lstat().st_mtime):
                    _remove(path)

    @contextlib.contextmanager
    def warning_last(self) -> Iterator[None]:
        """Give this store's warnings after the block, where it ends without an error.

        A warning may be an error: what it says to be computed again must be there by then.
        """
        self._damaged, self._unwritten = [], ""
        try:
            yield
        finally:
            damaged, self._damaged = self._damaged, None
        if damaged:
            named = ", ".join(map(str, damaged[:_NAMED]))
            more = f" and {len(damaged) - _NAMED} more" * (len(damaged) > _NAMED)
            said = "are damaged; they were" if len(damaged) > 1 else "is damaged; it was"
            warnings.warn(f"{named}{more} {said} computed again", stacklevel=4)
        if self._unwritten:
            warnings.warn(self._unwritten, stacklevel=4)

    def get(self, kind: str, key: str, parse: Callable[[bytes], T] = bytes) -> T | None:  # type: ignore[assignment]
        """Return the payload, or None where there is none or it was damaged.

        So is one that `parse` raises anything for, which makes it what is returned.
        """
        return self._read(self._path(kind, key, ""), lambda payload: parse(bytes(payload)))

    def put(self, kind: str, key: str, payload: bytes) -> None:
        """Keep a payload, which replaces any under the same key."""
        self._put(self._path(kind, key, ""), lambda file: file.write(payload))

    def get_array(
        self,
        kind: str,
        key: str,
        mmap: bool = True,
        check: Callable[[npt.NDArray[Any]], bool] = lambda array: True,
    ) -> npt.NDArray[Any] | None:
        """Return the array, or None where there is none or it was damaged.

        So is one that `check` is false of. With `mmap` it lies read-only in the file, else it is a
        copy in memory.
        """

        def parse(payload: memoryview) -> npt.NDArray[Any]:
            array = _as_array(payload)
            if not check(array):
                raise ValueError("an array of another kind")
            return array

        array = self._read(self._path(kind, key, ".npy"), parse)
        return array if mmap or array is None else array.copy(order="K")

    def reject_array(self, kind: str, key: str) -> None:
        """Take an array for damaged: it does not fit the others."""
        self._reject(self._path(kind, key, ".npy"))

    def remove_array(self, kind: str, key: str) -> None:
        """Remove an array that is not of use any more."""
        _remove(self._path(kind, key, ".npy"))

    def put_array(self, kind: str, key: str, array: npt.NDArray[Any]) -> None:
        """Keep an array without Python objects, which replaces any under the same key."""
        if array.dtype.hasobject:
            raise ValueError("an array of Python objects is not kept")

        def write(file: _Summed) -> None:
            np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)

        self._put(self._path(kind, key, ".npy"), write)

    @contextlib.contextmanager
    def new_array(
        self, kind: str, key: str, shape: tuple[int, ...], dtype: npt.DTypeLike
    ) -> Iterator[NewArray]:
        """Give an array to be filled, which `NewArray.keep` keeps without copying it.

        Raises `OSError` before the block begins, where there is no room for it.
        """
        path = self._path(kind, key, ".npy")
        temporary = temporary_beside(path)
        try:
            yield NewArray(temporary, path, shape, np.dtype(dtype), self._finished)
        finally:
            remove_temporary(temporary)

    def _read(self, path: Path, parse: Callable[[memoryview], T]) -> T | None:
        """Return what was written, in the file, if it is there and whole; note its use."""
        payload = _payload(path)
        if payload is None:
            return None
        try:
            parsed = parse(payload[: -_TRAILER.size]) if _is_whole(path, payload) else None
        except Exception:  # content of another kind: what looks into it may raise anything
            parsed = None
        if parsed is None:
            del payload  # a file that is mapped cannot be removed on Windows
            self._reject(path)
            return None
        with contextlib.suppress(OSError):  # a folder that can be read only
            os.utime(path)
        return parsed

    def _reject(self, path: Path) -> None:
        _remove(path)
        if self._damaged is None:
            warnings.warn(f"{path} is damaged; it is computed again", stacklevel=4)
        elif path not in self._damaged:
            self._damaged.append(path)

    def _path(self, kind: str, key: str, suffix: str) -> Path:
        if not _KIND.fullmatch(kind) or not _KEY.fullmatch(key):
            raise ValueError(f"not a kind and a digest: {kind!r}, {key!r}")
        return self._folder / kind / f"{key}.guard{suffix}"

    def _put(self, path: Path, write: Callable[[_Summed], Any]) -> None:
        def put() -> None:
            # What is abandoned goes when room is made.
            write_atomically(
                path, lambda file: _write_summed(path, file, write), tidy=False, durable=False
            )

        self._finished(path, put)

    def _finished(self, path: Path, put: Callable[[], Any]) -> None:
        """Have a file put in its place, and make room for it."""
        if not self._writable:
            return
        try:
            put()
            self._make_room(path)
        except OSError as error:
            self._writable = False
            self._unwritten = f"results are not kept in {self._folder}: {error}"
            if self._damaged is None:
                warnings.warn(self._unwritten, stacklevel=4)

    def _make_room(self, written: Path) -> None:
        files = list(self._files())
        own = str(written)
        if any(path == own and size > self._max_bytes for _, path, size in files):
            _remove(written)
            return
        total = sum(size for _, _, size in files)
        for used, path, size in sorted(files):
            unfinished = path.endswith(".tmp")
            # Another process may be about to give it its name.
            full = total > self._max_bytes and path != own
            if is_abandoned(path, used) if unfinished else full:
                _remove(Path(path))
                total -= size

    def _files(self) -> Iterator[tuple[float, str, int]]:
        """Yield when each of the store's own files was last used, its path and its size."""
        with os.scandir(self._folder) as kinds:
            folders = [
                kind.path
                for kind in kinds
                if _KIND.fullmatch(kind.name) and kind.is_dir(follow_symlinks=False)
            ]
        for folder in folders:
            with os.scandir(folder) as files:
                own = [file for file in files if _OWN.fullmatch(file.name)]
            for file in own:
                # Another process may remove it meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    state = file.stat(follow_symlinks=False)
                    yield state.st_mtime, file.path, state.st_size


class NewArray:
    """An array in a file beside the one that it may become; `values` are to be filled."""

    def __init__(
        self,
        temporary: Path,
        path: Path,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        finish: Callable[[Path, Callable[[], Any]], None],
    ) -> None:
        self._temporary, self._path, self._finish = temporary, path, finish
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            self._begin = file.tell()
            size = math.prod(shape) * dtype.itemsize
            _allocate(file, self._begin, size)
        self.values: npt.NDArray[Any] = np.memmap(temporary, dtype, "r+", self._begin, shape)

    def keep(self) -> None:
        """Keep the array, which replaces any under the same key; it cannot be used any more."""
        self._finish(self._path, self._put)

    def _put(self) -> None:
        with self._temporary.open("r+b") as file:
            checksum = zlib.crc32(file.read(self._begin), _seed(self._path))
            checksum = zlib.crc32(self.values.data, checksum)
            length = self._begin + self.values.nbytes
            del self.values  # a file that is mapped cannot be renamed on Windows
            file.seek(length)
            file.write(_TRAILER.pack(_MARK, length, checksum))
        self._temporary.replace(self._path)


class _Summed:
    """What is written to a file, with its length and checksum."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._file = file
        self.length, self.checksum = 0, _seed(path)

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.length += len(data)
        self.checksum = zlib.crc32(data, self.checksum)


def _seed(path: Path) -> int:
    """Start the checksum with the name: a file that was renamed is no other key's result."""
    return zlib.crc32(f"{path.parent.name}/{path.name}".encode())


def _write_summed(path: Path, file: IO[bytes], write: Callable[[_Summed], Any]) -> None:
    summed = _Summed(path, file)
    write(summed)
    file.write(_TRAILER.pack(_MARK, summed.length, summed.checksum))


def _payload(path: Path) -> memoryview | None:
    """Return a file's content, if it is there."""
    try:
        with path.open("rb") as file:
            if os.name == "nt":  # where a file that is mapped cannot be replaced
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError:
        return None
    except ValueError:  # an empty file cannot be mapped
        return memoryview(b"")


def _is_whole(path: Path, content: memoryview) -> bool:
    payload = content[: -_TRAILER.size]
    trailer = _TRAILER.pack(_MARK, len(payload), zlib.crc32(payload, _seed(path)))
    return content[-_TRAILER.size :] == trailer


def _allocate(file: IO[bytes], begin: int, size: int) -> None:
    """Have the disk give room: writing into a hole on a full one would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), begin, size)
        return
    for start in range(0, size, _BLOCK):
        file.write(bytes(min(_BLOCK, size - start)))


def _as_array(payload: memoryview) -> npt.NDArray[Any]:
    header = io.BytesIO(payload[: 2**16])
    np.lib.format.read_magic(header)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    begin, size = header.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or begin + size != len(payload):
        raise ValueError("a header of another array")
    values = np.frombuffer(payload, dtype, math.prod(shape), begin)
    return values.reshape(shape, order="F" if fortran else "C")


def _remove(path: Path) -> None:
    # Another process may have been faster, or (on Windows) still read it.
    with contextlib.suppress(OSError):
        path.unlink()
