"""Running a model over batches of any length, within whatever memory there is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from pytest_watermark_guard.models.device import computing_in
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.reading.foreign import out_of_memory
from pytest_watermark_guard.models.running.agreement import Activations, Shift
from pytest_watermark_guard.models.running.openvino_model import OpenVinoModel
from pytest_watermark_guard.models.running.plan import Plan


class Runner:
    """Runs a model, or a copy of it, by one plan, and measures how long that takes.

    Parameters
    ----------
    recorder : ActivationRecorder or OpenVinoModel
        The model and its layers.
    plan : Plan
        How to run it, beside what was done to a copy; its batch size is halved each time the
        device runs out of memory.
    clock : callable
        Returns the time in seconds.
    is_copy : bool, default False
        Whether the recorder is that of a copy: it is entered here, and left by `close`.

    Attributes
    ----------
    seconds : float
        Per input, in the last call.
    shift : Shift or None
        How far it moves A, by estimate. None: it is what others are compared with.
    """

    def __init__(
        self,
        recorder: ActivationRecorder | OpenVinoModel,
        plan: Plan,
        clock: Callable[[], float],
        is_copy: bool = False,
    ) -> None:
        self.recorder = recorder
        self.plan = plan
        self.clock = clock
        self.is_copy = is_copy
        self.seconds = 0.0
        self.shift: Shift | None = None
        self._stack = ExitStack()
        if is_copy:
            self._stack.enter_context(recorder)

    def close(self) -> None:
        """Leave the recorder of a copy."""
        self._stack.close()

    def __call__(self, inputs: torch.Tensor) -> Activations:
        """Run all rows of `inputs`; returns float32 or float64 [n, units] by layer.

        Raises
        ------
        torch.OutOfMemoryError
            If not even one image fits.
        """
        inputs = inputs.contiguous(memory_format=self.plan.memory_format)
        start = self.clock()
        parts: list[Activations] = []
        done = 0
        while done < len(inputs):
            # OpenVINO runs a few batches side by side.
            size = len(inputs) if self.plan.openvino else self.plan.batch_size
            try:
                parts.append(self._forward(inputs[done : done + size]))
            except RuntimeError as error:
                # A fixed batch size is part of an exported program: it cannot be halved.
                if size == 1 or self.recorder.batch_size or not out_of_memory(error):
                    raise
            else:
                done += size
                continue
            # Outside the handler, where the traceback no longer holds the failed batch's tensors.
            self.plan = replace(self.plan, batch_size=size // 2)
            if inputs.is_cuda:
                torch.cuda.empty_cache()
        activations = {layer: np.concatenate([p[layer] for p in parts]) for layer in parts[0]}
        self.seconds = (self.clock() - start) / len(inputs)
        return activations

    def _forward(self, chunk: torch.Tensor) -> Activations:
        if self.plan.precision == "bfloat16 weights":
            chunk = chunk.to(torch.bfloat16)
        if self.plan.openvino:
            return {layer: _as_array(units) for layer, units in self.recorder(chunk).items()}
        with computing_in(self.plan.precision, chunk.device):
            units = self.recorder(chunk)
        return {layer: _as_array(tensor) for layer, tensor in units.items()}


def _as_array(units: torch.Tensor) -> npt.NDArray[np.floating]:
    wide = units if units.dtype is torch.float64 else units.float()
    array: npt.NDArray[np.floating] = wide.cpu().numpy()
    return array
