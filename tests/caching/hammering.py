"""What several processes do to one store; a module of its own, which they can import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pytest_watermark_guard.caching.store import Store

KEYS = [f"{number:064x}" for number in range(10)]


def payload(key: str, writer: int) -> bytes:
    return f"{key} {writer} ".encode() * (500 + 300 * writer)


def hammer(folder: Path, writer: int, max_bytes: int, problems: Any) -> None:
    """Write and read the same keys as all the others; whatever is read must be whole."""
    try:
        store = Store(folder, max_bytes)
        for round_ in range(60):
            key = KEYS[(round_ * (writer + 1)) % 5]
            store.put("results", key, payload(key, writer))
            store.put_array("results", key, np.full(3000 + writer, writer))
            read = store.get("results", key)
            assert read is None or read in [payload(key, other) for other in range(4)]
            array = store.get_array("results", key)
            assert array is None or (array == len(array) - 3000).all()
    except BaseException as error:
        problems.put(repr(error))
