"""Which device a probe runs on, and in which precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch

from pytest_watermark_guard.errors import SettingsError


def resolve_device(device: str, worker: int = 0) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps`` ... into a device that is there.

    Parameters
    ----------
    device : str
        ``auto``: a CUDA GPU if there is one, else the CPU.
    worker : int, default 0
        With several GPUs, ``auto`` and ``cuda`` deal them out to worker processes in turn.

    Raises
    ------
    SettingsError
        If there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        if resolved.type == "cuda" and resolved.index is None and torch.cuda.is_available():
            resolved = torch.device("cuda", worker % torch.cuda.device_count())
        torch.empty(0, device=resolved)
        if resolved.type == "meta":
            raise RuntimeError("nothing is computed on it")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(
            f"device {device!r} cannot be used: {reason}. Use 'auto' or 'cpu'"
        ) from error
    return resolved


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Run the block under autocast, if `precision` is ``bfloat16``; else in float32 throughout.

    A caller's own autocast, TensorFloat-32 and oneDNN's bfloat16 must not change what it means.
    """
    if precision == "bfloat16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
        return
    with torch.autocast(device.type, enabled=False), _exact_float32(device):
        yield


@contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    # Read all before writing any: writing an old switch sets the new ones too.
    before = [(switch, value) for switch in _switches(device) for value in switch.values()]
    try:
        for switch, _ in before:
            switch.write(switch.exact)
        yield
    finally:
        for switch, value in before:
            switch.write(value)


class _Switch(NamedTuple):
    """A setting of torch that says what float32 means."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    exact: object

    def values(self) -> Iterator[Any]:
        """Give the value; nothing for an old switch that cannot express what the new ones say."""
        with suppress(RuntimeError):
            yield self.read()


def _switches(device: torch.device) -> Iterator[_Switch]:
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn
    by_name = hasattr(cuda, "fp32_precision")  # since torch 2.9
    if device.type == "cuda":
        # cuDNN's benchmark chooses algorithms by time: the last bits would vary from run to run.
        yield _attribute(cudnn, "benchmark", False)
        # Old and new must agree, or torch raises when a model reads the old ones.
        yield _Switch(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
        )
        yield _attribute(cudnn, "allow_tf32", False)
        # The old switch of matmul sets oneDNN's too.
        for backend in (cuda, cudnn.conv, cudnn.rnn, onednn.matmul) if by_name else ():
            yield _attribute(backend, "fp32_precision", "ieee")
    elif device.type == "cpu" and by_name:
        for backend in (onednn.matmul, onednn.conv):
            yield _attribute(backend, "fp32_precision", "ieee")


def _attribute(owner: Any, name: str, exact: object) -> _Switch:
    return _Switch(partial(getattr, owner, name), partial(setattr, owner, name), exact)


def device_name(device: torch.device) -> str:
    """Return what a graphics card is called, or what the processor can compute with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()
