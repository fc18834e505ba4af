"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file beside the target, then rename it.

    Other processes see the old content or the new one, never a part of it. If anything fails, the
    old file stays as it was and nothing else is left. Missing folders are made, links are followed,
    and the mode of a file that is replaced is kept. What is no regular file, such as a pipe, cannot
    be replaced and is written directly.
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
        with contextlib.suppress(FileNotFoundError):  # the file is new
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """Raise the `OSError` that `write_atomically` would meet now; the file stays as it is."""
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not target.exists() or target.is_file():
        temporary_beside(target).unlink()
    elif not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with the line ends that it has; see `write_atomically`."""
    data = text.encode("utf-8")
    write_atomically(path, lambda file: file.write(data))


def temporary_beside(path: Path) -> Path:
    """Make an empty file beside another one, with the mode that `open` gives to new files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    temporary.touch(exist_ok=False)
    return temporary
