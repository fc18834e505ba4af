"""Which device a probe runs on, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    """Run the block under autocast, if `precision` is ``bfloat16``; else without TensorFloat-32."""
    if precision == "bfloat16":
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
        return
    # A caller's own autocast must not change what "float32" means.
    with torch.autocast(device.type, enabled=False), _without_tensorfloat(device):
        yield


@contextmanager
def _without_tensorfloat(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    backends = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
    if hasattr(backends[0], "fp32_precision"):  # torch 2.9 and later
        name, exact = "fp32_precision", "ieee"
    else:
        backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
        name, exact = "allow_tf32", False  # type: ignore[assignment]
    before = [getattr(backend, name) for backend in backends]
    try:
        for backend in backends:
            setattr(backend, name, exact)
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            setattr(backend, name, value)
