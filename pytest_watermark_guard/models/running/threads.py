"""How many threads a model runs on, beside other work on the same machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

_SIZE, _TRIES = 512, 5
# How many times faster fewer threads must be: where all cores are free, the order is reversed.
_CLEARLY_FASTER = 1.25
_MOMENT = 0.05  # seconds in which what has just ended lets go of its core


def share_of_cores(workers: int = 1) -> int:
    """Return how many threads each of several processes that run models may use.

    Torch's own setting, which ``OMP_NUM_THREADS`` or a caller may have lowered, is not exceeded.
    """
    return max(1, min(torch.get_num_threads(), _cores() // workers))


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Have torch use `count` threads within the block, and as many as before after it."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_threads(most: int, seconds: Callable[[int], float] | None = None) -> int:
    """Return how many threads pay: fewer than `most` where others keep cores busy.

    Threads that compute one thing together wait for the slowest of them. So on a busy machine, all
    of them can be several times slower than half of them.

    Parameters
    ----------
    most : int
    seconds : callable, optional
        Takes a number of threads; returns how long the same work takes with them. By default a
        small matrix product is timed.
    """
    seconds = seconds or _matrix_product
    count = most
    while count > 1 and _pays(count // 2, count, seconds):
        time.sleep(_MOMENT)
        if not _pays(count // 2, count, seconds):
            break
        count //= 2
    return count


def _pays(fewer: int, count: int, seconds: Callable[[int], float]) -> bool:
    return seconds(fewer) * _CLEARLY_FASTER <= seconds(count)


def _matrix_product(threads: int) -> float:
    matrix = torch.ones(_SIZE, _SIZE)
    taken = []
    with using_threads(threads):
        for _ in range(_TRIES):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            taken.append(time.perf_counter() - start)
    return median(taken)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
