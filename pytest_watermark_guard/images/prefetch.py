"""Preparing the next result while the current one is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TypeVar

import torch

T = TypeVar("T")


def begun(jobs: Generator[T, None, None]) -> Iterator[T]:
    """Give the same jobs; the first is asked for at once, so that its images are read meanwhile."""
    first = next(jobs, None)
    return jobs if first is None else chain([first], jobs)


def in_turn(jobs: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """Give the results of jobs in their order; the next job is asked for before each is given.

    Its images are read while a result is used. It is not run before its turn: on a CPU that would
    only slow down the model.
    """
    coming = iter(jobs)
    job = next(coming, None)
    while job is not None:
        result = job()
        job = next(coming, None)
        yield result


def one_ahead(jobs: Iterable[Callable[[], T]], device: torch.device) -> Generator[T, None, None]:
    """Give the results of jobs in their order; one thread does the next meanwhile.

    Jobs are asked for in the caller's thread, three at most before the first result is given. On a
    GPU, they use the caller's stream: no synchronisation is needed, and memory that they free may
    be used again at once. What a job raises, it raises when its turn comes.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def done(job: Callable[[], T]) -> T:
        with torch.cuda.stream(stream):  # None changes nothing
            return job()

    with ThreadPoolExecutor(1, thread_name_prefix="wm-prepare") as pool:
        ahead: Future[T] | None = None
        for future in in_turn(partial(pool.submit, done, job) for job in jobs):
            before, ahead = ahead, future
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()
