"""Calls as tasks of a Ray cluster: <https://docs.ray.io>."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pytest_watermark_guard.caching.store import cache_bytes, cache_folder
from pytest_watermark_guard.errors import EngineError
from pytest_watermark_guard.probing.engines.engine import Common, Item, Result

LOSSES = 3
"""How often a call is made again after its worker or machine was lost."""


class RayEngine:
    """Runs each call as a Ray task, on a GPU of its own where the cluster has any.

    The cluster is the one that Ray is connected to or finds (``RAY_ADDRESS``), else one is started
    on this machine; it ends with the process. On a CPU a call reserves as many cores as torch uses
    threads here.

    Parameters
    ----------
    device : str
        ``"auto"``: a GPU if the cluster has any. ``"cpu"``, or ``"cuda"``.

    Raises
    ------
    EngineError
        If Ray is missing or cannot be reached, or has no such device.
    """

    def __init__(self, device: str) -> None:
        self._ray = _connected()
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        on_gpu = _on_gpu(device, any(node.get("GPU") for node in nodes))
        threads = torch.get_num_threads()
        most = int(max(node.get("CPU", 0) for node in nodes))
        cpus = 1 if on_gpu else min(threads, most)
        self._resources = {"num_cpus": cpus, "num_gpus": int(on_gpu)}
        self.workers = sum(
            int(
                min(node.get("CPU", 0), node.get("GPU", 0))
                if on_gpu
                else node.get("CPU", 0) // cpus
            )
            for node in nodes
            if cpus
        )
        if not self.workers:
            raise EngineError(
                "engine 'ray': no machine of the cluster lends "
                f"{'a GPU and ' if on_gpu else ''}a CPU core; see `ray status`"
            )
        self._caller = _Caller(
            threads,
            str(Path.cwd()),
            {
                "WATERMARK_GUARD_CACHE": str(cache_folder().absolute()),
                "WATERMARK_GUARD_CACHE_BYTES": str(cache_bytes()),
            },
        )

    def map(
        self,
        function: Callable[[Common, Item], Result],
        common: Common,
        items: Sequence[Item],
        ahead: int | None = None,
        done: Callable[[int], None] | None = None,
    ) -> Generator[Result | EngineError, None, None]:
        """Give ``function(common, item)`` for every item, in order; see `Engine`."""
        ray = self._ray
        # An exception is the function's answer; only a lost worker is a reason to ask again.
        task = ray.remote(_call).options(
            **self._resources, max_retries=LOSSES, retry_exceptions=False
        )
        sent = _sent(lambda: ray.put((function, common)), "what all workers need")
        if isinstance(sent, EngineError):
            raise sent
        waiting = deque(items)
        begun: deque[Any] = deque()
        running: set[Any] = set()
        try:
            while waiting or begun:
                while waiting and (ahead is None or len(begun) < ahead):
                    item = waiting.popleft()
                    call = _sent(partial(task.remote, self._caller, sent, item), "a model")
                    begun.append(call)
                    if not isinstance(call, EngineError):
                        running.add(call)
                first = begun.popleft()
                while first in running:
                    ended, _ = ray.wait([*running], num_returns=1)
                    running.difference_update(ended)
                    if done is not None:
                        done(len(ended))
                yield first if isinstance(first, EngineError) else self._result(first)
        finally:
            for call in running:
                ray.cancel(call)

    def _result(self, call: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(call)
        except exceptions.RayTaskError as error:
            raise error.cause from None
        except exceptions.RayError as error:
            first, *_ = str(error).strip().splitlines() or [""]
            return EngineError(
                f"its worker was lost {LOSSES + 1} times, the last time by "
                f"{type(error).__name__}: {first}"
            )


@dataclass(frozen=True)
class _Caller:
    """What a worker takes over from the process that calls."""

    threads: int
    folder: str
    variables: dict[str, str]


def _call(caller: _Caller, sent: tuple[Callable[..., Any], Any], item: Any) -> Any:
    function, common = sent
    # Sums are split among threads: another number of them gives other last bits.
    torch.set_num_threads(caller.threads)
    os.environ.update(caller.variables)
    if Path(caller.folder).is_dir():  # relative paths mean what they mean to the caller
        os.chdir(caller.folder)
    return function(common, item)


def _sent(send: Callable[[], Any], what: str) -> Any:
    try:
        return send()
    except Exception as error:  # whatever someone's objects raise when they are pickled
        first, *_ = str(error).strip().splitlines() or [""]
        return EngineError(
            f"{what} cannot be sent to another process ({type(error).__name__}: {first}); name the "
            "model by a spec, and the images by a folder"
        )


def _connected() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EngineError(
            "engine 'ray' needs Ray: pip install 'pytest-watermark-guard[ray]'"
        ) from error
    if not ray.is_initialized():
        # Nobody who runs tests expects them to report home.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
        except Exception as error:
            raise EngineError(
                f"engine 'ray': the cluster cannot be reached or started ({type(error).__name__}: "
                f"{error}); see RAY_ADDRESS and `ray status`"
            ) from error
    return ray


def _on_gpu(device: str, there: bool) -> bool:
    kind, _, number = device.partition(":")
    if number:
        raise EngineError(
            f"engine 'ray' deals out GPUs by itself: device is 'auto', 'cpu' or 'cuda', not "
            f"{device!r}"
        )
    if kind == "cuda" and not there:
        raise EngineError("engine 'ray': device is 'cuda', and the cluster has no GPU")
    return there and kind != "cpu"
