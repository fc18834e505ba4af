"""A progress bar for people, and none for logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    total: int, wanted: bool = True, title: str = "watermark probe"
) -> Iterator[Callable[[int], None]]:
    """Show how many images are done, if standard error is a terminal and ``CI`` is not set.

    Parameters
    ----------
    total : int
        Number of images.
    wanted : bool, default True
        False: never.
    title : str, default "watermark probe"
        What is going on.

    Yields
    ------
    callable
        Takes the number of images that were finished since the last call.
    """
    if not wanted or not sys.stderr.isatty() or os.environ.get("CI"):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (title, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
