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
from pytest_watermark_guard.models.running.plan import Plan

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
        return {layer: _as_array(tensor) for layer, tensor in units.items()}


def _as_array(units: torch.Tensor) -> npt.NDArray[np.floating]:
    wide = units if units.dtype is torch.float64 else units.float()
    array: npt.NDArray[np.floating] = wide.cpu().numpy()
    return array


def _out_of_memory(error: RuntimeError) -> bool:
    # Not every device has an error type of its own for it.
    message = str(error)
    return (
        isinstance(error, torch.cuda.OutOfMemoryError)
        or "can't allocate memory" in message
        or "out of memory" in message
    )


class TimedRunner:
    """Runs a model, or a copy of it, by one plan, and measures how long that takes.

    Parameters
    ----------
    recorder : ActivationRecorder
        The model and its layers.
    plan : Plan
    clock : callable
        Returns the time in seconds.
    is_copy : bool, default False
        Whether the recorder is that of a copy: it is entered here, and left by `close`.

    Attributes
    ----------
    seconds : float
        Per input, in the last call.
    """

    def __init__(
        self,
        recorder: ActivationRecorder,
        plan: Plan,
        clock: Callable[[], float],
        is_copy: bool = False,
    ) -> None:
        self.recorder = recorder
        self.clock = clock
        self.plan = plan
        self.is_copy = is_copy
        self.seconds = 0.0
        self._stack = ExitStack()
        if is_copy:
            self._stack.enter_context(recorder)

    @property
    def plan(self) -> Plan:
        """How the model is run; its batch size is halved when memory runs out."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        self._plan = plan
        self._runner = Runner(self.recorder, plan.batch_size, plan.precision)

    def __call__(self, inputs: torch.Tensor) -> Activations:
        """Run all rows of `inputs`; returns float32 or float64 [n, units] by layer."""
        inputs = inputs.contiguous(memory_format=self._plan.memory_format)
        start = self.clock()
        activations = self._runner(inputs)
        self.seconds = (self.clock() - start) / len(inputs)
        if self._runner.batch_size != self._plan.batch_size:  # memory ran out
            self._plan = replace(self._plan, batch_size=self._runner.batch_size)
        return activations

    def close(self) -> None:
        """Leave the recorder of a copy."""
        self._stack.close()
