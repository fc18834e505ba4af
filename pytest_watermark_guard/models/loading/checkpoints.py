"""Weights from local files, read without running any code that they may carry."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pytest_watermark_guard.errors import ModelSpecError

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 5


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Make every ``torch.load`` in the body, also inside libraries, refuse pickled code."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a checkpoint file, on the CPU.

    Parameters
    ----------
    path : path
        A ``.safetensors`` file, or one that ``torch.save`` wrote (``.pt``, ``.pth``, ``.bin``,
        ``.ckpt``, ``.tar``): a state dict, also under ``state_dict``, ``model_state_dict`` or
        ``model``. A ``module.`` or ``_orig_mod.`` that all names share is taken off.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    ModelSpecError
        When the file is missing, of another kind, damaged, holds anything but tensors, or holds
        pickled Python objects.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ModelSpecError(f"weights file {str(path)!r} does not exist")
    if path.suffix == ".safetensors":
        try:
            return _without_prefix(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ModelSpecError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in PICKLE_SUFFIXES:
        raise ModelSpecError(
            f"{path}: unknown weights suffix {path.suffix!r}; "
            f"known are .safetensors, {', '.join(PICKLE_SUFFIXES)}"
        )
    try:
        with weights_only():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip, tar and torch each raise their own
        raise ModelSpecError(
            f"{path} is damaged or holds more than tensors (pickled Python objects are not "
            "loaded, they could run code): save model.state_dict() alone, best as safetensors. "
            f"torch says: {first_line(error)}"
        ) from error
    return _without_prefix(_tensors(content, path))


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content:
        raise ModelSpecError(f"{path} holds a {type(content).__name__}, not a state dict")
    not_tensors = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if not_tensors:
        raise ModelSpecError(
            f"{path} is not a state dict: {_listed(not_tensors)} "
            f"{'is not a tensor' if len(not_tensors) == 1 else 'are not tensors'}"
        )
    return {str(key): value for key, value in content.items()}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:  # DistributedDataParallel around torch.compile, or inside it
        if state and all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def load_checkpoint(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint file into a module; every name and shape must match.

    Parameters
    ----------
    module : torch.nn.Module
        Its parameters and buffers are overwritten, unless an error is raised.
    path : path
        See `read_state_dict`.

    Raises
    ------
    ModelSpecError
        When the file cannot be read or does not belong to the module: names the first keys that
        are missing, unexpected or of another shape.
    """
    load_state_dict(module, read_state_dict(path), path)


def load_state_dict(
    module: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Load ``state``, which was read from ``path``, into a module; see `load_checkpoint`."""
    own = module.state_dict()
    # Batch norm's counter is younger than many checkpoints, and unused in evaluation.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        key
        for key in own
        if key in state and isinstance(own[key], Tensor) and own[key].shape != state[key].shape
    ]
    if not missing and not unexpected and not misshapen:
        module.load_state_dict(state, strict=False)
        return
    problems = [
        f"{len(keys)} {what} ({_listed(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if misshapen:
        shapes = [f"{k} {[*state[k].shape]} instead of {[*own[k].shape]}" for k in misshapen]
        problems.append(f"{len(misshapen)} of another shape ({_listed(shapes)})")
    advice = ""
    if (
        misshapen
        and not missing
        and not unexpected
        and _only_the_classes_differ(misshapen, own, state)
    ):
        advice = f"; only the head differs: add num_classes={state[misshapen[-1]].shape[0]}"
    raise ModelSpecError(
        f"{os.fspath(path)} does not fit {type(module).__name__}: {', '.join(problems)}{advice}"
    )


def _only_the_classes_differ(
    keys: list[str], own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> bool:
    counts = {state[key].shape[:1] for key in keys}
    return len(counts) == 1 and all(
        own[key].ndim > 0 and own[key].shape[1:] == state[key].shape[1:] for key in keys
    )


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
