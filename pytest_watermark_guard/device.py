"""Which device a probe runs on, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    name: str = "fp32_precision"
    exact: object = "ieee"
    backends: tuple[Any, ...] = ()
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # before torch 2.9
        name, exact = "allow_tf32", False
    if device.type == "cuda":
        convolutions = getattr(torch.backends.cudnn, "conv", torch.backends.cudnn)
        backends = torch.backends.cuda.matmul, convolutions
    elif device.type == "cpu" and name == "fp32_precision":
        onednn: Any = torch.backends.mkldnn
        backends = onednn.matmul, onednn.conv
    before = [getattr(backend, name) for backend in backends]
    try:
        for backend in backends:
            setattr(backend, name, exact)
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            setattr(backend, name, value)
