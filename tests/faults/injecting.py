"""Faults at the n-th file operation below a folder; a module of its own, for other processes."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# What Python tells of before it does it, see sys.addaudithook: no operation is overlooked, however
# it is spelled. Writing to a file that is open is not among them.
EVENTS = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.utime", "os.scandir", "os.listdir",
    "os.chmod", "os.truncate",
}  # fmt: skip


def no_space() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def input_output() -> OSError:
    return OSError(errno.EIO, "Input/output error")


def no_permission() -> OSError:
    return PermissionError(errno.EACCES, "Permission denied")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "full disk": no_space,
    "bad disk": input_output,
    "no permission": no_permission,
    "interrupt": KeyboardInterrupt,
}


class Injector:
    """Counts file operations below a folder, and has one of them fail."""

    def __init__(self) -> None:
        self._folder = self._suffix = ""
        self._left = 0
        self._fail: Callable[[], BaseException] | None = None
        self.operations = 0
        self.fired = False

    def operation(self, path: Any) -> None:
        """Take note of an operation on a path; raise if its turn has come."""
        if not self._folder or not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.fsdecode(path)
        if not name.startswith(self._folder) or not name.endswith(self._suffix):
            return
        self.operations += 1
        self._left -= 1
        if self._left == 0 and self._fail is not None:
            self.fired = True
            raise self._fail()

    @contextlib.contextmanager
    def armed(
        self,
        folder: Path,
        turn: int = 0,
        fail: Callable[[], BaseException] | None = None,
        suffix: str = "",
    ) -> Iterator[None]:
        """Within the block, operation number `turn` on a file of this suffix fails; 0: none."""
        self._folder, self._left, self._fail, self._suffix = str(folder), turn, fail, suffix
        self.operations, self.fired = 0, False
        try:
            yield
        finally:
            self._folder = ""


INJECTOR = Injector()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if INJECTOR._folder and event in EVENTS:
        INJECTOR.operation(arguments[0] if arguments else None)


class _Writing:
    """A file whose writes are operations too."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._path = file, path

    def write(self, data: Any) -> Any:
        INJECTOR.operation(self._path)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Writing:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        try:
            INJECTOR.operation(self._path)  # what is buffered is written now
        finally:
            self._file.__exit__(*error)


_opened = Path.open


def _open(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
    file = _opened(path, mode, *rest, **options)
    return _Writing(file, path) if INJECTOR._folder and mode != "rb" else file


@contextlib.contextmanager
def injecting() -> Iterator[Injector]:
    """Give the injector, with the hooks that it needs in place."""
    if not _HOOKED:
        sys.addaudithook(_audit)  # it cannot be taken away again; without a folder it does nothing
        _HOOKED.append(True)
    Path.open = _open  # type: ignore[method-assign,assignment]
    try:
        yield INJECTOR
    finally:
        Path.open = _opened  # type: ignore[method-assign]


_HOOKED: list[bool] = []
