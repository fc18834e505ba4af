"""Running a model over batches of any length, within whatever memory there is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pytest_watermark_guard.models.device import computing_in
from pytest_watermark_guard.models.reading.activations import ActivationRecorder

Activations = dict[str, npt.NDArray[np.floating]]


class Runner:
    """Runs forward passes and brings the activations back as arrays.

    Parameters
    ----------
    recorder : ActivationRecorder
        The model and its layers.
    batch_size : int
        Images in a forward pass, to begin with.
    precision : {"float32", "bfloat16", "bfloat16 weights"}
        ``bfloat16`` is autocast; for weights in bfloat16 the input is converted.

    Attributes
    ----------
    batch_size : int
        Halved each time the device runs out of memory, and kept.
    """

    def __init__(self, recorder: ActivationRecorder, batch_size: int, precision: str) -> None:
        self._recorder = recorder
        self._precision = precision
        self.batch_size = recorder.batch_size or batch_size

    def __call__(self, inputs: torch.Tensor) -> Activations:
        """Run all rows of `inputs`; returns float32 or float64 [n, units] by layer.

        Raises
        ------
        torch.OutOfMemoryError
            If not even one image fits.
        """
        parts: list[Activations] = []
        done = 0
        while done < len(inputs):
            size = self.batch_size
            try:
                parts.append(self._forward(inputs[done : done + size]))
            except RuntimeError as error:
                # A fixed batch size is part of an exported program: it cannot be halved.
                if size == 1 or self._recorder.batch_size or not _out_of_memory(error):
                    raise
            else:
                done += size
                continue
            # Outside the handler, where the traceback no longer holds the failed batch's tensors.
            self.batch_size = max(1, size // 2)
            if inputs.is_cuda:
                torch.cuda.empty_cache()
        return {layer: np.concatenate([part[layer] for part in parts]) for layer in parts[0]}

    def _forward(self, chunk: torch.Tensor) -> Activations:
        if self._precision == "bfloat16 weights":
            chunk = chunk.to(torch.bfloat16)
        with computing_in(self._precision, chunk.device):
            units = self._recorder(chunk)
        return {layer: _as_array(u) for layer, u in units.items()}


def _as_array(units: torch.Tensor) -> npt.NDArray[np.floating]:
    wide = units if units.dtype is torch.float64 else units.float()
    array: npt.NDArray[np.floating] = wide.cpu().numpy()
    return array


def _out_of_memory(error: RuntimeError) -> bool:
    # Not every device has a type of its own for it.
    told = str(error)
    return (
        isinstance(error, torch.cuda.OutOfMemoryError)
        or "can't allocate memory" in told
        or "out of memory" in told
    )
