"""More than one process: where a survey's models, and a probe's images, can be worked on.

An engine calls a function for many items, elsewhere, and gives the results in the items' order.
Whatever it is used for, the numbers are those of one process, to the last bit: workers compute
with as many threads as the caller, and a probe is cut only where its batches end anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from pytest_watermark_guard.errors import EngineError

Common = TypeVar("Common")
Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Calls functions in other processes."""

    @property
    def workers(self) -> int:
        """How many calls can be made at once."""

    def map(
        self,
        function: Callable[[Common, Item], Result],
        common: Common,
        items: Sequence[Item],
        ahead: int | None = None,
        done: Callable[[int], None] | None = None,
    ) -> Generator[Result | EngineError, None, None]:
        """Give ``function(common, item)`` for every item, in order.

        Parameters
        ----------
        function : callable
            Of a module that workers can import.
        common
            Sent once to each machine, not once for each item.
        items : sequence
        ahead : int, optional
            How many calls may be begun before their results are asked for; default: all.
        done : callable, optional
            Told how many calls ended since the last time, in whatever order.

        Yields
        ------
        Result or EngineError
            The error where an item cannot be sent, or its worker was lost too often; the others go
            on. Closed early, it stops what is under way.

        Raises
        ------
        EngineError
            If what is common cannot be sent.
        Exception
            What the function raises. It is not called again for it.
        """
