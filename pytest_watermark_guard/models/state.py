"""Running someone else's model without leaving a trace on it."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from pytest_watermark_guard.errors import SettingsError
from pytest_watermark_guard.models.adapters.adapter import AdaptedModel


@contextlib.contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode without gradients, then put everything back.

    Restored, also when the body raises: each submodule's own training flag, the contents of the
    buffers, ``requires_grad`` and ``grad`` of the parameters, and the global random states of
    Python, NumPy and torch (CUDA's too, where it was in use).

    Parameters
    ----------
    module : torch.nn.Module
        Its submodules are switched by flag: ``train()`` and ``eval()`` may be overridden, and
        exported programs forbid them.
    """
    training = [(m, m.training) for m in module.modules() if getattr(m, "training", None)]
    buffers = [(b, _version(b), b.detach().clone()) for b in module.buffers()]
    # TorchScript keeps its buffers elsewhere, and Python code cannot rebind them.
    plain = [m for m in module.modules() if isinstance(m._buffers, dict)]
    registered = [(m, dict(m._buffers)) for m in plain]
    parameters = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    tensors = (*module.parameters(), *module.buffers())
    inference = any(t.is_inference() for t in tensors if not nn.parameter.is_lazy(t))
    with same_random_state():
        try:
            for submodule, _ in training:
                submodule.training = False
            # Not inference_mode: a model that caches a tensor in forward (position tables,
            # attention masks) would keep an inference tensor, and its next training step fails.
            # A model made in the caller's inference mode may need it to write to its own buffers.
            mode = contextlib.nullcontext() if inference else torch.inference_mode(False)
            with mode, torch.no_grad():
                yield
        finally:
            for submodule, flag in training:
                submodule.training = flag
            for submodule, own in registered:
                # `self.steps = self.steps + 1` registers another tensor as the buffer.
                submodule._buffers.clear()
                submodule._buffers.update(own)
            for buffer, version, saved in buffers:
                # Writing bumps the version counter, which a pending backward checks.
                if version is None or buffer._version != version:
                    overwrite(buffer, saved)
            for parameter, requires_grad, grad in parameters:
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
                if parameter.grad is not grad:
                    parameter.grad = grad


def overwrite(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Put a value in a tensor's place, also in one that was made in inference mode."""
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(value)


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def same_random_state() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch back after the body."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside ``DataParallel``, ``DistributedDataParallel``, ``torch.compile``."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif _is_compiled_wrapper(module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def _is_compiled_wrapper(module: nn.Module) -> bool:
    # By name: importing torch._dynamo to ask isinstance would take seconds.
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


@contextlib.contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Run the body with every compiled submodule in eager mode, where hooks see all calls."""
    undo: list[tuple[nn.Module, str, Any]] = []
    try:
        for submodule in module.modules():
            if submodule.__dict__.get("_compiled_call_impl") is not None:
                undo.append((submodule, "_compiled_call_impl", submodule._compiled_call_impl))
                submodule._compiled_call_impl = None
            if _is_compiled_wrapper(submodule):
                undo.append((submodule, "forward", submodule.__dict__["forward"]))
                submodule.__dict__["forward"] = submodule._orig_mod
        yield
    finally:
        for submodule, name, value in undo:
            submodule.__dict__[name] = value


def input_dtype(module: nn.Module) -> torch.dtype:
    """Return the type that a model computes in: half-precision weights take such input."""
    tensors = (*module.parameters(), *module.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def runnable_on(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a model on ``device``: the module itself when it is there, else a moved copy.

    Parameters
    ----------
    module : torch.nn.Module
        Never moved.
    device : torch.device or str
        Where the model shall run.

    Returns
    -------
    torch.nn.Module
        ``module`` itself, or a deep copy on ``device``.

    Raises
    ------
    SettingsError
        When the module cannot be copied or moved.
    """
    device = torch.device(device)
    if isinstance(module, AdaptedModel):
        return module.placed(device)
    tensors = [*module.parameters(), *module.buffers()]
    if all(_same_device(tensor.device, device) for tensor in tensors):
        return module
    try:
        return copy.deepcopy(module).to(device)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        devices = sorted({str(tensor.device) for tensor in tensors})
        raise SettingsError(
            f"the model is on {', '.join(devices)} and could not be copied to {device} "
            f"({type(error).__name__}: {error}): move it there yourself, "
            f"or pass device={devices[0]!r}"
        ) from error


def _same_device(one: torch.device, other: torch.device) -> bool:
    return one.type == other.type and _index(one) == _index(other)


def _index(device: torch.device) -> int:
    if device.index is not None:
        return device.index
    return torch.cuda.current_device() if device.type == "cuda" else 0
