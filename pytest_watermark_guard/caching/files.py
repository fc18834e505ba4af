"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import secrets
import shutil
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

# Which machine and which process writes it: a file that nobody writes any more can be removed.
_TEMPORARY = re.compile(r".+\.([0-9a-f]{8})_(\d+)_[0-9a-f]{8}\.tmp")
_ABANDONED = 24 * 3600  # seconds, where it cannot be asked whether the writer lives
_WRITING: set[str] = set()
"""Paths of the temporary files that this process writes now."""


def write_atomically(
    path: str | Path,
    write: Callable[[IO[bytes]], Any],
    *,
    tidy: bool = True,
    durable: bool = True,
) -> None:
    """Write a file beside the target, then rename it.

    Other processes see the old content or the new one, never a part of it. If anything fails, the
    old file stays as it was and nothing else is left; with `tidy`, what a killed process left
    beside it is removed, for which the folder is listed. With `durable` the content is on the disk
    before it has the name, so that a power cut leaves no empty file: not worth its time for what
    can be made again. Missing folders are made, links are followed, and the mode of a file that is
    replaced is kept. What is no regular file, such as a pipe, cannot be replaced and is written
    directly.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            write(file)
        return
    temporary = temporary_beside(target)
    try:
        with temporary.open("wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):  # the file is new
            shutil.copymode(target, temporary)
        temporary.replace(target)
    finally:
        remove_temporary(temporary)
    if tidy:
        _remove_abandoned(target)


def check_writable(path: str | Path) -> None:
    """Raise the `OSError` that `write_atomically` would meet now; the file stays as it is."""
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not target.exists() or target.is_file():
        remove_temporary(temporary_beside(target))
    elif not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with the line ends that it has; see `write_atomically`."""
    data = text.encode("utf-8")
    write_atomically(path, lambda file: file.write(data))


def temporary_beside(path: Path) -> Path:
    """Make an empty file beside another one, with the mode that `open` gives to new files.

    Whoever asks for it calls `remove_temporary` in the end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f"{path.name}.{_machine()}_{os.getpid()}_{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(name)
    _WRITING.add(str(temporary))
    try:
        temporary.touch(exist_ok=False)
    except BaseException:
        remove_temporary(temporary)
        raise
    return temporary


def remove_temporary(temporary: Path) -> None:
    """Remove a temporary file, if it was not given its name; whoever comes next removes the rest.

    Where it cannot be removed, the error that led here must not be lost.
    """
    with contextlib.suppress(OSError):
        temporary.unlink()
    _WRITING.discard(str(temporary))


def is_abandoned(temporary: str | Path, written: float) -> bool:
    """Tell whether nobody writes a temporary file any more, whose last change was at `written`."""
    name = _TEMPORARY.fullmatch(os.path.basename(temporary))  # noqa: PTH119 - of strings too
    if name is None or name[1] != _machine() or os.name != "posix":
        return written < time.time() - _ABANDONED
    if int(name[2]) == os.getpid():
        return str(temporary) not in _WRITING
    return not _lives(int(name[2]))


def _remove_abandoned(target: Path) -> None:
    """Remove what killed processes left when they were about to write a file."""
    with contextlib.suppress(OSError):  # another process was faster, or the folder is not ours
        with os.scandir(target.parent) as files:
            beside = [file for file in files if file.name.startswith(f"{target.name}.")]
        for file in beside:
            ours = _TEMPORARY.fullmatch(file.name)
            if ours and is_abandoned(file.path, file.stat(follow_symlinks=False).st_mtime):
                Path(file.path).unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # on Windows this would end it: see `is_abandoned`
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


@cache
def _machine() -> str:
    """Return a name for where process numbers are those of this process; containers differ."""
    parts = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with contextlib.suppress(OSError):
            state = os.stat(path)  # noqa: PTH116 - a link's target, which has no path
            parts += [str(state.st_ino)] if path.endswith("pid") else [Path(path).read_text()]
    return f"{zlib.crc32(' '.join(parts).encode()):08x}"
