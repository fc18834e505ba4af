from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
from hammering import KEYS, hammer

from pytest_watermark_guard.caching import store as module
from pytest_watermark_guard.caching.files import remove_temporary, temporary_beside
from pytest_watermark_guard.caching.store import Store, cache_bytes, cache_folder
from pytest_watermark_guard.errors import SettingsError

PLENTY = 10**9


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", PLENTY)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def age(path: Path, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(path, (when, when))


def test_payloads_come_back_by_kind_and_key(store: Store) -> None:
    assert store.get("results", KEYS[0]) is None
    store.put("results", KEYS[0], b"one")
    store.put("results", KEYS[1], b"")
    store.put("activations", KEYS[0], b"three")
    assert store.get("results", KEYS[0]) == b"one"
    assert store.get("results", KEYS[1]) == b""
    assert store.get("activations", KEYS[0]) == b"three"
    assert store.get("activations", KEYS[1]) is None
    assert store.get_array("results", KEYS[0]) is None
    store.put("results", KEYS[0], b"again")
    assert store.get("results", KEYS[0]) == b"again"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        np.arange(12)[::2],
        np.zeros((0, 3), dtype=np.uint8),
        np.array(2.5),
        np.array([True, False]),
    ],
    ids=["float32", "fortran", "strided", "empty", "scalar", "bool"],
)
@pytest.mark.parametrize("mmap", [True, False])
def test_arrays_come_back(store: Store, array: np.ndarray[Any, Any], mmap: bool) -> None:
    store.put_array("activations", KEYS[0], array)
    back = store.get_array("activations", KEYS[0], mmap=mmap)
    assert back is not None
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable != mmap


def test_arrays_can_be_read_by_others(store: Store, tmp_path: Path) -> None:
    store.put_array("activations", KEYS[0], np.arange(5))
    (path,) = files(tmp_path)
    np.testing.assert_array_equal(np.load(path, allow_pickle=False), np.arange(5))


def test_objects_are_not_pickled(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Python objects"):
        store.put_array("activations", KEYS[0], np.array([{}]))
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "key"),
    [("../up", KEYS[0]), ("Kind", KEYS[0]), ("", KEYS[0]), ("a", "../../x"), ("a", "g" * 64),
     ("a", "12"), ("a", KEYS[0] + "\n")],
)  # fmt: skip
def test_names_that_are_no_words_and_digests_are_refused(store: Store, kind: str, key: str) -> None:
    with pytest.raises(ValueError, match="not a kind and a digest"):
        store.put(kind, key, b"")
    with pytest.raises(ValueError, match="not a kind and a digest"):
        store.get(kind, key)


DAMAGE = {
    "truncated": lambda content: content[:-1],
    "half": lambda content: content[: len(content) // 2],
    "emptied": lambda content: b"",
    "one bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "last bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "longer": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["bytes", "array"])
def test_damage_is_found_and_removed(store: Store, tmp_path: Path, damage: str, kind: str) -> None:
    def read() -> Any:
        get = store.get if kind == "bytes" else store.get_array
        return get("results", KEYS[0])

    store.put("results", KEYS[0], b"payload" * 9)
    store.put_array("results", KEYS[0], np.arange(9))
    path = next(p for p in files(tmp_path) if (p.suffix == ".npy") == (kind == "array"))
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.warns(UserWarning, match=r"is damaged; it is computed again") as caught:
        assert read() is None
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert not path.exists()
    assert read() is None


def test_a_renamed_file_is_no_other_keys_result(store: Store, tmp_path: Path) -> None:
    store.put("results", KEYS[0], b"payload")
    (path,) = files(tmp_path)
    path.rename(path.with_name(path.name.replace(KEYS[0], KEYS[1])))
    with pytest.warns(UserWarning, match="is damaged"):
        assert store.get("results", KEYS[1]) is None


def test_a_mapped_array_outlives_its_file(store: Store, tmp_path: Path) -> None:
    store.put_array("activations", KEYS[0], np.arange(5000))
    array = store.get_array("activations", KEYS[0])
    store.put_array("activations", KEYS[0], np.zeros(5000))
    for path in files(tmp_path):
        path.unlink()
    np.testing.assert_array_equal(array, np.arange(5000))


def test_those_not_used_for_longest_go_first(tmp_path: Path) -> None:
    small = Store(tmp_path, 3500)
    for number in range(3):
        small.put("results", KEYS[number], bytes(1000))
    for number, path in enumerate(files(tmp_path)):
        age(path, 100 - number)
    assert small.get("results", KEYS[0]) is not None  # used just now
    small.put_array("activations", KEYS[3], np.zeros(800, np.uint8))
    kept = [number for number in range(3) if small.get("results", KEYS[number]) is not None]
    assert kept == [0, 2]
    assert small.get_array("activations", KEYS[3]) is not None
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 3500


def test_what_was_just_written_stays(tmp_path: Path) -> None:
    small = Store(tmp_path, 1500)
    small.put("results", KEYS[0], bytes(1000))
    age(files(tmp_path)[0], -1000)  # another machine's clock may be ahead
    small.put("results", KEYS[1], bytes(1000))
    assert small.get("results", KEYS[0]) is None
    assert small.get("results", KEYS[1]) == bytes(1000)


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    small = Store(tmp_path, 1500)
    small.put("results", KEYS[0], bytes(1000))
    (path,) = files(tmp_path)
    writing = path.with_name(f"{KEYS[1]}.guard.another_1.tmp")
    writing.write_bytes(bytes(1000))
    age(writing, 3600)
    small.put("results", KEYS[2], bytes(10))
    assert writing in files(tmp_path)
    assert small.get("results", KEYS[0]) is None


def test_what_exceeds_the_bound_alone_is_not_kept_and_costs_nothing_else(tmp_path: Path) -> None:
    small = Store(tmp_path, 1500)
    small.put("results", KEYS[0], bytes(1000))
    small.put("results", KEYS[1], bytes(2000))
    assert small.get("results", KEYS[1]) is None
    assert small.get("results", KEYS[0]) == bytes(1000)


def test_only_its_own_files_are_removed(tmp_path: Path) -> None:
    foreign = [
        "builtin-v1.npy", "results/notes.txt", "results/data.npy", f"results/{KEYS[0]}.npy",
        f"results/{KEYS[0]}", "results/tmpabc.tmp", f"Other Folder/{KEYS[0]}.guard",
        f"results/deeper/{KEYS[0]}.guard",
    ]  # fmt: skip
    for name in foreign:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        age(path, 10**7)
    small = Store(tmp_path, 100)
    small.put("results", KEYS[1], bytes(10))
    small.put("results", KEYS[2], bytes(10))
    small.put("results", KEYS[3], bytes(10))
    assert {tmp_path / name for name in foreign} < {*files(tmp_path)}
    assert len(files(tmp_path)) == len(foreign) + 100 // (10 + 20)


def test_what_a_killed_process_left_is_cleaned_up_after_a_day(store: Store, tmp_path: Path) -> None:
    store.put("results", KEYS[0], b"")
    (kept,) = files(tmp_path)
    stale, fresh = (kept.with_name(f"{kept.name}.{name}.tmp") for name in ("stale_1", "fresh_1"))
    for path, hours in ((stale, 25), (fresh, 23)):
        path.write_bytes(b"half")
        age(path, hours * 3600)
    store.put("results", KEYS[0], b"")
    assert files(tmp_path) == sorted([kept, fresh])


def test_temporary_files_have_the_names_that_are_cleaned_up(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, target: Path) -> None:
        age(path, 25 * 3600)
        monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.put("results", KEYS[0], b"payload")
    monkeypatch.undo()
    (left,) = files(tmp_path)
    store.put("results", KEYS[1], b"payload")
    assert left not in files(tmp_path)


def test_a_failed_write_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match=r"results are not kept in .*No space left") as caught:
        store.put_array("results", KEYS[0], np.zeros(3))
    assert caught[0].filename == __file__
    store.put("results", KEYS[0], b"payload")  # without another warning
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_gives_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = Store(tmp_path / "file" / "store", PLENTY)
    assert blocked.get("results", KEYS[0]) is None
    with pytest.warns(UserWarning, match="results are not kept in") as caught:
        blocked.put("results", KEYS[0], b"payload")
    assert len(caught) == 1
    blocked.put("results", KEYS[1], b"payload")  # without another warning
    assert blocked.get("results", KEYS[0]) is None


@pytest.mark.parametrize("max_bytes", [PLENTY, 200_000], ids=["plenty", "scarce"])
def test_processes_do_not_disturb_each_other(tmp_path: Path, max_bytes: int) -> None:
    context = multiprocessing.get_context("spawn")
    problems = context.SimpleQueue()
    processes = [
        context.Process(target=hammer, args=(tmp_path, writer, max_bytes, problems))
        for writer in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert problems.empty(), problems.get()
    assert all(process.exitcode == 0 for process in processes)
    found = files(tmp_path)
    assert found
    assert not [path for path in found if path.suffix == ".tmp"]


def test_the_bound_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATERMARK_GUARD_CACHE_BYTES", raising=False)
    assert cache_bytes() == module.DEFAULT_BYTES == 2 * 2**30
    monkeypatch.setenv("WATERMARK_GUARD_CACHE_BYTES", "1000")
    assert cache_bytes() == 1000


@pytest.mark.parametrize("text", ["-1", "2 GiB", "1e9", "1.5", "٣", " 1"])
def test_a_bound_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("WATERMARK_GUARD_CACHE_BYTES", text)
    with pytest.raises(SettingsError, match="WATERMARK_GUARD_CACHE_BYTES must be a whole number"):
        cache_bytes()


def test_the_folder_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
def test_without_it_the_folder_is_the_platform_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WATERMARK_GUARD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "pytest-watermark-guard"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "pytest-watermark-guard"


@pytest.mark.skipif(sys.platform != "linux", reason="other platforms have other folders")
@pytest.mark.parametrize("cache_path", [None, Path("~/.cache/pytest-watermark-guard")])
def test_a_user_without_a_home_folder_has_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch, cache_path: Path | None
) -> None:
    import pwd

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("WATERMARK_GUARD_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if cache_path is not None:  # as older versions of platformdirs return it
        monkeypatch.setattr(platformdirs, "user_cache_path", lambda *args, **options: cache_path)
    assert cache_folder() == Path(tempfile.gettempdir()) / "pytest-watermark-guard"


def test_an_array_is_filled_where_it_is_kept(store: Store, tmp_path: Path) -> None:
    with store.new_array("images", KEYS[0], (3, 4), np.uint8) as new:
        new.values[:] = np.arange(12).reshape(3, 4)
        assert store.get_array("images", KEYS[0]) is None
        new.keep()
    kept = store.get_array("images", KEYS[0])
    assert kept is not None
    np.testing.assert_array_equal(kept, np.arange(12).reshape(3, 4))
    (path,) = files(tmp_path)
    content = path.read_bytes()
    store.put_array("images", KEYS[0], np.arange(12, dtype=np.uint8).reshape(3, 4))
    assert path.read_bytes() == content, "the same file as by put_array"


def test_an_array_that_is_not_finished_leaves_nothing(store: Store, tmp_path: Path) -> None:
    store.put_array("images", KEYS[0], np.zeros(3))
    with pytest.raises(KeyError), store.new_array("images", KEYS[0], (5,), np.uint8):
        raise KeyError
    with store.new_array("images", KEYS[1], (5,), np.uint8):
        pass
    assert len(files(tmp_path)) == 1
    assert store.get_array("images", KEYS[0]) is not None


def test_a_new_array_makes_room_too(tmp_path: Path) -> None:
    small = Store(tmp_path, 1000)
    small.put_array("activations", KEYS[0], np.zeros(500, np.uint8))
    age(files(tmp_path)[0], 60)
    with small.new_array("images", KEYS[1], (600,), np.uint8) as new:
        new.keep()
    assert small.get_array("activations", KEYS[0]) is None
    assert small.get_array("images", KEYS[1]) is not None


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        store = Store(tmp_path / "new" / "store", PLENTY)
        store.put("results", KEYS[0], b"payload")
        store.put_array("results", KEYS[0], np.zeros(3))
        with store.new_array("images", KEYS[0], (3,), np.uint8) as new:
            new.keep()
    finally:
        os.umask(before)
    for path in (tmp_path / "new").rglob("*"):
        ordinary = 0o777 if path.is_dir() else 0o666
        assert path.stat().st_mode & 0o777 == ordinary & ~mask, path


USER = """
import os, sys
from pathlib import Path
import numpy as np
from pytest_watermark_guard.caching.store import Store
folder, user, key = sys.argv[1], int(sys.argv[2]), "0" * 64
os.setgroups([])
os.setgid(12345)
os.setuid(user)
os.umask(0o002)
store = Store(Path(folder), 10**6)
print(store.get("results", key), store.get_array("results", key))
store.put("results", key, b"%d" % user)
store.put_array("results", key, np.array([user]))
print(store.get("results", key), store.get_array("results", key))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs two users")
@pytest.mark.skipif("tmp" not in tempfile.gettempdir(), reason="needs a folder for all users")
def test_two_users_of_a_group_share_a_store() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - what is above is for all users already
        shared = Path(folder, "shared")
        shared.mkdir()
        os.chown(shared, 0, 12345)
        shared.chmod(0o2775)
        said = [
            subprocess.run(
                [sys.executable, "-W", "error", "-c", USER, str(shared), str(user)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.splitlines()
            for user in (12346, 12347, 12346)
        ]
    assert said == [
        ["None None", "b'12346' [12346]"],
        ["b'12346' [12346]", "b'12347' [12347]"],
        ["b'12347' [12347]", "b'12346' [12346]"],
    ]


def test_what_a_parser_refuses_is_damaged(store: Store, tmp_path: Path) -> None:
    for refuse in (int, lambda payload: 1 / 0):
        store.put("results", KEYS[0], b"payload")
        with pytest.warns(UserWarning, match="is damaged"):
            assert store.get("results", KEYS[0], refuse) is None
        assert files(tmp_path) == []
    store.put_array("results", KEYS[0], np.zeros(3))
    with pytest.warns(UserWarning, match="is damaged"):
        assert store.get_array("results", KEYS[0], check=lambda array: False) is None


def test_warnings_come_after_the_block_and_once(store: Store, tmp_path: Path) -> None:
    for key in KEYS[:5]:
        store.put("results", key, b"payload")
    for path in files(tmp_path):
        path.write_bytes(b"damaged")

    def read_and_write() -> None:
        with store.warning_last():
            for key in KEYS[:5]:
                assert store.get("results", key) is None
                store.put("results", key, b"again")

    with pytest.warns(UserWarning, match="and 2 more are damaged; they were computed") as told:
        read_and_write()
    assert len(told) == 1
    assert store.get("results", KEYS[0]) == b"again"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, a day passes")
def test_the_next_start_removes_what_a_killed_process_left(store: Store, tmp_path: Path) -> None:
    store.put("results", KEYS[0], b"payload")
    (path,) = files(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    own = temporary_beside(path)
    left = path.with_name(own.name.replace(f"_{os.getpid()}_", f"_{process.pid}_"))
    left.write_bytes(b"half")
    Store(tmp_path / "store", PLENTY).remove_abandoned()
    assert files(tmp_path) == sorted([path, own])
    remove_temporary(own)
