"""Imports of large libraries, which the garbage collector need not look through again and again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imported_for_good() -> Iterator[None]:
    """Have the garbage collector pass over what is imported within the block, if torch is.

    The objects of torch and torchvision live as long as the process, and each full collection looks
    at all of them: 0.2 s, of which pytest has several at the end of a run. Where the caller has
    torch already, nothing is done: among its objects may be some that are to be freed.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.collect()  # what is garbage now would never be freed
    yield
    if "torch" in sys.modules:
        gc.freeze()
