"""Errors that someone's model raises, told with what it was fed and what can be changed."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import ModelError, WatermarkGuardError
from pytest_watermark_guard.models.adapters.adapter import called

_LONGEST = 400
_ADVICE = (
    "What it is fed is changed by preprocess= (size, range, or a function of the batch), where and "
    "how it runs by device= and precision=. If it takes something else than a batch [B, C, H, W], "
    "pass a torch.nn.Module around it whose forward takes one"
)


@contextlib.contextmanager
def explained(module: nn.Module, inputs: Tensor, doing: str) -> Iterator[None]:
    """Turn what a model raises in the block into a `ModelError`, with the original as its cause.

    Errors of our own and those of memory stay as they are.

    Parameters
    ----------
    module : torch.nn.Module
    inputs : Tensor
        What it is fed.
    doing : str
        What it is run for: ``"finding its layers"``.
    """
    try:
        yield
    except (WatermarkGuardError, MemoryError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        # Whole where it can be: in a survey there is no traceback.
        text = textwrap.shorten(str(error), _LONGEST, placeholder=" ...")
        said = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise ModelError(
            f"{called(module)} raised {said}\nwhile {doing}, on {_told(inputs)}. {_ADVICE}"
        ) from error


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that the device has no memory left."""
    # Not every device has an error type of its own for it.
    message = str(error)
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in message or "out of memory" in message)
    )


def _told(inputs: Tensor) -> str:
    kind = str(inputs.dtype).removeprefix("torch.")
    extent = ""
    # After some errors a GPU answers nothing any more.
    with contextlib.suppress(RuntimeError):
        low, high = (float(value) for value in torch.aminmax(inputs.detach().float()))
        extent = f", values from {low:.3g} to {high:.3g}"
    return f"a {kind} batch {[*inputs.shape]} on {inputs.device}{extent}"
