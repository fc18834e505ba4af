"""Any function from a batch to its logits, as a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_watermark_guard.models.adapters.adapter import AdaptedModel


class FunctionModel(AdaptedModel):
    """Calls a function from a batch [B, C, H, W] to an array [B, classes].

    Parameters
    ----------
    function : callable
        Takes a float32 tensor; gives a tensor, a NumPy array, anything NumPy makes an array of, or
        several of these in a tuple, list or mapping. Its attributes ``preprocessing`` and
        ``class_names`` are read as a module's.
    """

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._function = function
        for name in ("preprocessing", "class_names"):
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))

    @property
    def called(self) -> str:
        """The function's name, or the class of a callable object."""
        return str(getattr(self._function, "__name__", type(self._function).__name__))

    @property
    def computes(self) -> str:
        """That only the function knows."""
        return "as the function has it"

    def placed(self, device: torch.device) -> FunctionModel:
        """Return itself: it is fed wherever the batch is."""
        return self

    def placed_by_default(self, device: torch.device) -> tuple[FunctionModel, torch.device, str]:
        """Return the CPU as its device: there every function can read a batch."""
        if device.type == "cpu":
            return self, device, ""
        why = (
            f"{self.called} is fed on the CPU, as it is a function: pass device={str(device)!r} if "
            "it takes batches there"
        )
        return self, torch.device("cpu"), why

    def forward(self, x: Tensor) -> Any:
        """Call the function; what it returns becomes tensors on the batch's device."""
        return _as_tensors(self._function(x), x.device)


def _as_tensors(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if value is None or isinstance(value, (str, bytes)):
        return value
    if isinstance(value, Mapping):
        return {name: _as_tensors(item, device) for name, item in value.items()}
    # A list of matrices is several outputs, as onnxruntime gives them; a list of rows is one.
    if isinstance(value, tuple) or (
        isinstance(value, list) and any(getattr(item, "ndim", 0) > 1 for item in value)
    ):
        return tuple(_as_tensors(item, device) for item in value)
    if isinstance(value, list) and any(isinstance(item, Tensor) for item in value):
        return torch.stack(value).detach().to(device)
    array = np.asarray(value)
    # Objects that hold their outputs as fields are read as they are.
    return value if array.dtype.hasobject else torch.from_numpy(array.copy()).to(device)
