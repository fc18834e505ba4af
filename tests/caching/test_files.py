from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from pytest_watermark_guard.caching.files import (
    remove_temporary,
    temporary_beside,
    write_atomically,
    write_text_atomically,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="modes and pipes are POSIX's")


def half(file: IO[bytes]) -> None:
    file.write(b"half of ")
    raise KeyError("an error in the middle")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    """Set the umask for one test."""
    old = os.umask(0o022)
    yield os.umask
    os.umask(old)


def test_the_folder_is_made_and_the_text_is_utf_8(tmp_path):
    write_text_atomically(tmp_path / "new" / "file", "的\n")
    assert (tmp_path / "new" / "file").read_bytes() == "的\n".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_in_the_middle_leaves_what_was_there(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(KeyError):
        write_atomically(path, half)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"file": old} if old else {})


@POSIX
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_an_ordinary_file(tmp_path, umask, mask):
    umask(mask)
    (tmp_path / "ordinary").write_text("")
    write_text_atomically(tmp_path / "file", "text")
    assert mode(tmp_path / "file") == mode(tmp_path / "ordinary") == 0o666 & ~mask


@POSIX
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path, umask):
    (tmp_path / "secret").write_text("old")
    (tmp_path / "secret").chmod(0o600)
    write_text_atomically(tmp_path / "secret", "new")
    assert mode(tmp_path / "secret") == 0o600
    assert (tmp_path / "secret").read_text() == "new"


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_durable_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, durable):
    synced = []

    def fsync(descriptor):
        (written,) = tmp_path.iterdir()
        synced.append((written.suffix, written.read_bytes()))

    monkeypatch.setattr("os.fsync", fsync)
    write_atomically(tmp_path / "file", lambda file: file.write(b"text"), durable=durable)
    assert synced == [(".tmp", b"text")] * durable


@POSIX
def test_a_link_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    for text in ("one", "two"):
        write_text_atomically(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "file").read_text() == text


@POSIX
def test_a_pipe_is_written_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text_atomically(tmp_path / "pipe", "text")
    reader.join()
    assert received == ["text"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match=r"directory|denied"):
        write_text_atomically(tmp_path, "text")


def abandoned_beside(path: Path, process: int, machine: str | None = None) -> Path:
    temporary = temporary_beside(path)
    remove_temporary(temporary)
    own_machine, _, token = temporary.name.removeprefix(f"{path.name}.").split("_")
    left = path.with_name(f"{path.name}.{machine or own_machine}_{process}_{token}")
    left.write_bytes(b"half")
    return left


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@POSIX
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / "report.json"
    left = abandoned_beside(path, ended_process())
    others = [tmp_path / "report.json.tmp", tmp_path / "report.json.old.tmp", tmp_path / "x.tmp"]
    for other in others:
        other.write_text("not ours")
    write_text_atomically(path, "text")
    assert not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


@POSIX
def test_what_another_process_is_writing_stays(tmp_path):
    path = tmp_path / "report.json"
    living = abandoned_beside(path, os.getppid())
    elsewhere = abandoned_beside(path, ended_process(), machine="0" * 8)
    mine = temporary_beside(path)
    write_text_atomically(path, "text")
    assert sorted(tmp_path.iterdir()) == sorted([path, living, elsewhere, mine])
    remove_temporary(mine)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(elsewhere, (two_days_ago, two_days_ago))
    write_text_atomically(path, "text")
    assert sorted(tmp_path.iterdir()) == sorted([path, living])


def test_an_interrupt_is_not_lost_to_a_file_that_cannot_be_removed(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    def interrupted(file: IO[bytes]) -> None:
        monkeypatch.setattr(Path, "unlink", fail)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", interrupted)
    monkeypatch.undo()
    write_text_atomically(tmp_path / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
