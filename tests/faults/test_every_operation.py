"""At every file operation and every batch in turn, an error or a kill: nothing is lost by it.

After each fault, the same is asked for again: it gives the same numbers, and nothing lies around.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from injecting import ERRORS, Injector, injecting

from pytest_watermark_guard.caching.files import write_text_atomically
from pytest_watermark_guard.caching.store import Store
from pytest_watermark_guard.errors import ModelError, WatermarkGuardError

# How many faults each test injects at least; were there fewer, it would have lost its hooks.
LEAST = {"documents": 60, "store": 200, "probe": 100, "known": 20, "batches": 15}
KEY = "0" * 64

pytestmark = pytest.mark.filterwarnings("ignore:results are not kept in", "ignore:.* is damaged")


@pytest.fixture
def injector():
    with injecting() as injector:
        yield injector


@pytest.fixture
def count(record_property):
    """Tell how many faults a test has injected, and that they are enough."""

    def tell(name: str, faults: int) -> None:
        record_property("faults", faults)
        print(f"{faults} faults injected ({name})")
        assert faults >= LEAST[name]

    return tell


def each_fault(injector: Injector, folder: Path, errors: Any, act: Callable[[], Any]) -> Any:
    """Have every operation of `act` fail, for every error; yields after each what was raised."""
    for error in errors:
        turn = 1
        while True:
            raised = None
            with injector.armed(folder, turn, ERRORS[error]):
                try:
                    act()
                except BaseException as problem:
                    raised = problem
            if not injector.fired:
                if raised is not None:
                    raise raised
                break
            turn += 1
            yield error, raised


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


def test_at_least_300_faults_are_injected():
    assert sum(LEAST.values()) >= 300


def test_a_document_is_the_old_one_or_the_new_one(tmp_path, injector, count):
    faults = 0
    for old in (None, "old"):
        folder = tmp_path / f"from {old}"
        folder.mkdir()
        target = folder / "new folder" / "report.json"

        def reset(target: Path = target, old: str | None = old) -> None:
            shutil.rmtree(target.parent, ignore_errors=True)
            if old is not None:
                target.parent.mkdir()
                target.write_text(old)

        def write(target: Path = target) -> None:
            write_text_atomically(target, "new")

        reset()
        for error, raised in each_fault(injector, folder, ERRORS, write):
            faults += 1
            left = files(folder)
            name = "new folder/report.json"
            assert left.get(name, b"").decode() in ((old or ""), "new")
            if raised is None:  # in tidying up
                assert left[name] == b"new"
            elif error == "interrupt":
                assert isinstance(raised, KeyboardInterrupt)
            else:
                assert isinstance(raised, OSError)
            write()
            assert files(folder) == {name: b"new"}
            reset()
    count("documents", faults)


ARRAY = np.arange(12.0).reshape(3, 4)


def fill(store: Store) -> None:
    try:
        with store.new_array("images", KEY, ARRAY.shape, ARRAY.dtype) as new:
            new.values[:] = ARRAY
            new.keep()
    except OSError:
        pass  # there was no room for it


STORE = {
    "put": lambda store: store.put("results", KEY, b"payload"),
    "put_array": lambda store: store.put_array("results", KEY, ARRAY),
    "new_array": fill,
    "get": lambda store: store.get("results", KEY),
    "get_array": lambda store: store.get_array("images", KEY),
    "start": lambda store: store.remove_abandoned(),
}


def test_the_store_costs_time_only(tmp_path, injector, count):
    faults = 0
    folder = tmp_path / "store"

    def whole() -> bool:
        store = Store(folder, 10**6)
        payload, arrays = store.get("results", KEY), [store.get_array("images", KEY)]
        arrays.append(store.get_array("results", KEY))
        assert payload in (None, b"payload")
        assert all(array is None or np.array_equal(array, ARRAY) for array in arrays)
        return payload is not None and all(array is not None for array in arrays)

    for name, act in STORE.items():
        for full in (False, True):
            shutil.rmtree(folder, ignore_errors=True)

            def prepare(full: bool = full) -> None:
                if full:
                    for put in ("put", "put_array", "new_array"):
                        STORE[put](Store(folder, 10**6))

            prepare()
            for error, raised in each_fault(
                injector, folder, ERRORS, lambda act=act: act(Store(folder, 10**6))
            ):
                faults += 1
                assert isinstance(raised, KeyboardInterrupt if error == "interrupt" else type(None))
                whole()
                for put in ("put", "put_array", "new_array"):
                    STORE[put](Store(folder, 10**6))
                assert whole(), name
                assert not list(folder.rglob("*.tmp"))
                if not full:
                    shutil.rmtree(folder, ignore_errors=True)
                prepare()
    count("store", faults)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """Photos, and what a probe of them says."""
    folder = tiny.photos(tmp_path / "photos")
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "first"))
    return folder, tiny.probe(folder).to_json()


def test_a_probe_says_the_same_whatever_happens_to_its_cache(
    tmp_path, monkeypatch, injector, count, reference
):
    photos, said = reference
    cache, faults = tmp_path / "cache", 0
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(cache))
    errors = [*ERRORS]
    while True:
        error = errors[faults % len(errors)]
        raised = None
        with injector.armed(cache, faults + 1, ERRORS[error]):
            try:
                assert tiny.probe(photos).to_json() == said
            except KeyboardInterrupt as interrupt:
                raised = interrupt
        if not injector.fired:
            break
        faults += 1
        assert (raised is None) == (error != "interrupt")
        assert tiny.probe(photos).to_json() == said
        assert not list(cache.rglob("*.tmp"))
        shutil.rmtree(cache)
    count("probe", faults)


def test_so_it_does_when_all_is_cached(tmp_path, monkeypatch, injector, count, reference):
    photos, said = reference
    cache, faults = tmp_path / "first", 0
    for error, raised in each_fault(
        injector, cache, ["bad disk", "interrupt"], lambda: tiny.probe(photos).to_json()
    ):
        faults += 1
        assert isinstance(raised, KeyboardInterrupt if error == "interrupt" else type(None))
        assert tiny.probe(photos).to_json() == said
        assert not list(cache.rglob("*.tmp"))
    count("known", faults)


class Killed(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("cached", [True, False])
def test_at_every_batch(tmp_path, monkeypatch, count, reference, cached):
    photos, said = reference
    cache, faults = tmp_path / "cache", 0
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(cache))
    for error in (OSError("the data set's server is gone"), MemoryError(), KeyboardInterrupt(),
                  Killed(), SystemExit(3)):  # fmt: skip
        turn = 1
        while True:
            left = [turn]

            def before(left: list[int] = left, error: BaseException = error) -> None:
                left[0] -= 1
                if left[0] == 0:
                    raise error

            # What a model raises is told as such; memory and interrupts stay as they are.
            expected = ModelError if isinstance(error, OSError) else type(error)
            with contextlib.suppress(expected):
                assert tiny.probe(photos, before).to_json() == said
                # The first call only looks for the input's size; without it, more is assumed.
                assert left[0] > 0 or turn == 1, "it was raised"
            if left[0] > 0:
                break
            turn, faults = turn + 1, faults + 1
            assert tiny.probe(photos).to_json() == said
            assert not list(cache.rglob("*.tmp"))
            if not cached:
                shutil.rmtree(cache)
        shutil.rmtree(cache, ignore_errors=True)
    count("batches", faults)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("turn", [3, 24])
def test_after_a_process_was_killed(tmp_path, monkeypatch, reference, turn):
    photos, said = reference
    script = Path(__file__).with_name("killed.py")
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, str(script), str(photos), str(tmp_path / "cache"), str(turn)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "cache").rglob("*.tmp"))
    assert tiny.probe(photos).to_json() == said
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_damaged_files_are_named_in_one_warning(tmp_path, reference):
    photos, said = reference
    for path in (tmp_path / "first" / "cache").rglob("*.guard*"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert tiny.probe(photos).to_json() == said
    (warned,) = caught
    assert str(tmp_path / "first" / "cache") in str(warned.message)
    assert str(warned.message).endswith("computed again")


@pytest.mark.parametrize("damage", ["one", "all"])
def test_errors_for_warnings_fail_one_run(tmp_path, monkeypatch, reference, damage):
    """A damaged file fails a run that takes warnings for errors, by its name; not the next one."""
    photos, said = reference
    cached = sorted((tmp_path / "first" / "cache").rglob("*.guard*"))
    assert len(cached) > 5
    for path in cached if damage == "all" else cached[:1]:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = damage == "all"  # of single files, that one may be none that is read
        told = pytest.raises(UserWarning, match="computed again")
        with told if read else contextlib.suppress(UserWarning):
            tiny.probe(photos)
        for _ in range(2):
            assert tiny.probe(photos).to_json() == said


def test_a_cache_that_cannot_be_written_is_told_after_the_probe(tmp_path, monkeypatch, reference):
    photos, said = reference
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("WATERMARK_GUARD_CACHE", str(tmp_path / "file"))
    calls = []
    with pytest.warns(UserWarning, match="results are not kept in") as caught:
        assert tiny.probe(photos, lambda: calls.append(1)).to_json() == said
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="results are not kept in"):
            tiny.probe(photos, lambda: calls.append(1))
    assert len(calls) >= 6, "both ran the model on all images"


@pytest.mark.parametrize("error", [ValueError("x"), WatermarkGuardError("y")])
def test_an_error_of_the_probe_is_not_hidden_by_a_warning(tmp_path, reference, error):
    photos, _ = reference
    for path in (tmp_path / "first" / "cache").rglob("*.guard*"):
        path.write_bytes(b"damaged")

    def fail() -> None:
        raise error

    with pytest.raises(WatermarkGuardError, match=str(error)):
        tiny.probe(photos, fail)
