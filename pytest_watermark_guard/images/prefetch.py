"""The next piece of work is done while the one before is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")


def in_turn(jobs: Iterable[Callable[[], T]]) -> Generator[T, None, None]:
    """Give the results of jobs in their order; the next job has been asked for by then.

    What it needs is on its way while a result is used, and not while the next one is made of it:
    on a CPU both would only get into each other's way.
    """
    coming = iter(jobs)
    job = next(coming, None)
    while job is not None:
        result = job()
        job = next(coming, None)
        yield result


def one_ahead(jobs: Iterable[Callable[[], T]], device: torch.device) -> Generator[T, None, None]:
    """Give the results of jobs in their order; one thread does the next meanwhile.

    Parameters
    ----------
    jobs : iterable of callable
        Asked for in the caller's thread, three at most before the first result is given.
    device : torch.device
        On a GPU, what they do is queued in the caller's stream: it needs no other order, and what
        they free may be used again at once.

    Raises
    ------
    Exception
        Whatever a job raises, when its turn comes.
    """
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def done(job: Callable[[], T]) -> T:
        with torch.cuda.stream(stream):  # of None: as it is
            return job()

    with ThreadPoolExecutor(1, thread_name_prefix="wm-prepare") as pool:
        ahead: Future[T] | None = None
        for future in in_turn(partial(pool.submit, done, job) for job in jobs):
            before, ahead = ahead, future
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()
