"""A model with the layers that are read, converted for OpenVINO.

What OpenVINO runs is one trace of the model. So a model whose Python code looks at numbers, and may
go another way for other images, is not converted; and whoever converts compares the activations.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.device import computing_in
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.running.threads import using_threads

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_TELEMETRY = "openvino_telemetry"
_ROWS_WATCHED = 2


class OpenVinoModel(AbstractContextManager["OpenVinoModel"]):
    """Runs what OpenVINO made of a model; called as an `ActivationRecorder` is.

    Parameters
    ----------
    compiled : openvino.CompiledModel
    layers : tuple of str
        Of its outputs, in order.
    batch_size : int
        That it was compiled for. The last batch is filled up.
    """

    def __init__(self, compiled: Any, layers: tuple[str, ...], batch_size: int) -> None:
        side_by_side = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        # Twice as many: a slow core holds up none of the others.
        self._requests = [compiled.create_infer_request() for _ in range(2 * side_by_side)]
        self._layers = layers
        self.batch_size = batch_size

    def __exit__(self, *_: object) -> None:
        self._requests = []

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Run any number of images [n, C, H, W], some batches side by side: float32 [n, units]."""
        missing = -len(x) % self.batch_size
        # Filled up by a real image: a model may look at the whole batch.
        filled = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
        batches = torch.split(filled.contiguous(), self.batch_size)
        found: list[list[Tensor]] = []
        started: deque[Any] = deque()
        try:
            for batch, request in zip(batches, cycle(self._requests), strict=False):
                if len(started) == len(self._requests):
                    found.append(self._found_by(started.popleft()))
                started.append(request)
                request.start_async([batch.numpy()], share_inputs=True)
            while started:
                found.append(self._found_by(started.popleft()))
        finally:  # only after an error is there any: the batches' memory is read until they end
            for request in started:
                with suppress(Exception):
                    request.wait()
        units = (torch.cat(parts)[: len(x)] for parts in zip(*found, strict=True))
        return dict(zip(self._layers, units, strict=True))

    def _found_by(self, request: Any) -> list[Tensor]:
        request.wait()
        # Copied: the request's own memory is written again by another batch.
        arrays = (request.get_output_tensor(index).data for index in range(len(self._layers)))
        return [torch.from_numpy(array.copy()) for array in arrays]


class Converter:
    """Converts a model once for each shape, and compiles it for several precisions, side by side.

    Parameters
    ----------
    recorder : ActivationRecorder
        The model and its layers. It stays as it is.
    """

    def __init__(self, recorder: ActivationRecorder) -> None:
        self._recorder = recorder
        self._graphs: dict[tuple[int, ...], Any] = {}  # by shape of the input
        self._compiled: dict[str, Future[Any]] = {}

    def start(self, example: Tensor, precisions: Iterable[str], at_once: int = 1) -> None:
        """Convert the model, unless it was for this shape, and begin to compile it.

        Parameters
        ----------
        example : Tensor
            A batch [B, C, H, W] of the size that will be run; the recorder is entered.
        precisions : iterable of str
            "float32", "bfloat16" or both. Each is compiled on a thread of its own.
        at_once : int, default 1
            How many batches there will be at once: the threads are shared out among no more.

        Raises
        ------
        LayerError
            If the model is an exported program, or its code looks at numbers.
        """
        shape = (*example.shape,)
        if shape not in self._graphs:
            self._graphs[shape] = _graph_of(self._recorder, example)
        # Torch's number of threads is this thread's: others are not told.
        compiled = partial(_compiled, self._graphs[shape], torch.get_num_threads(), at_once)
        pool = ThreadPoolExecutor(thread_name_prefix="wm-compile")
        self._compiled = {p: pool.submit(compiled, p) for p in dict.fromkeys(precisions)}
        pool.shutdown(wait=False)
        self._batch_size = len(example)

    def compiled(self, precision: str) -> OpenVinoModel:
        """Return the model for one of the precisions, on torch's threads; once for each start."""
        compiled = self._compiled.pop(precision).result()
        return OpenVinoModel(compiled, self._recorder.layers, self._batch_size)


def _graph_of(recorder: ActivationRecorder, example: Tensor) -> Any:
    if not recorder.hookable:
        raise LayerError("an exported program is run as it is")
    with computing_in("float32", example.device):
        if _looks_at_numbers(recorder, example[:_ROWS_WATCHED].clone()):
            raise LayerError("the model's code looks at numbers: a trace may not hold for all")
        graph = _converted(_traced(recorder, example.clone()))
    graph.reshape([*example.shape])
    return graph


def _traced(recorder: ActivationRecorder, example: Tensor) -> Any:
    """Trace as a function: of a module, every part would be copied first, five times the time."""

    def layers(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(units.float() for units in recorder(x).values())

    with warnings.catch_warnings(), _without_gradients(recorder.module):
        # That the trace holds for one shape only, and that torch has another way to trace.
        warnings.simplefilter("ignore")
        trace: Any = torch.jit.trace
        traced = trace(layers, example, check_trace=False, strict=False)
    # Most nodes are constants, each of them many times; to convert them all takes twice as long.
    constant_pooling: Any = getattr(torch._C, "_jit_pass_constant_pooling", None)
    if constant_pooling is not None:
        constant_pooling(traced.graph)
    return traced


@contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """Have no parameter ask for gradients: to a function's trace it is no constant else."""
    asking = [p for p in module.parameters() if p.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _converted(traced: Any) -> Any:
    """Convert by the frontend: ``openvino.convert_model`` does so too, and sends that it did."""
    openvino = load_openvino()
    decoding = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    frontends = openvino.frontend.FrontEndManager()
    frontend = frontends.load_by_framework("pytorch")
    decoder = decoding.TorchScriptPythonDecoder(traced)
    return frontend.convert(frontend.load(decoder))


def _compiled(graph: Any, threads: int, at_once: int, precision: str) -> Any:
    options = {
        # What would be faster than asked for is not asked for.
        "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        # A few batches side by side, on a core or a few each: threads that share one batch wait for
        # each other at every layer, and longer where a core has other work.
        "PERFORMANCE_HINT": "THROUGHPUT",
        "PERFORMANCE_HINT_NUM_REQUESTS": at_once,
        "INFERENCE_NUM_THREADS": threads,
        # Two workers would be pinned to the same core.
        "ENABLE_CPU_PINNING": False,
    }
    return load_openvino().Core().compile_model(graph, "CPU", options)


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry, which reports already that it is imported."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    before = sys.modules.get(_TELEMETRY)
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # it does without, then
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]
        if before is not None:
            sys.modules[_TELEMETRY] = before


# What Python code, or numpy, is given of a tensor without any operator of torch.
_HANDED_OVER = (Tensor.numpy, Tensor.tolist, Tensor.__array__, Tensor.__dlpack__)
# Operators whose answer, or whose answer's shape, depends on numbers.
_TELLING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether an operator tells Python code what numbers there are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.telling: bool = False

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not _TELLING.isdisjoint(operator.tags):
            # Only a mask selects as many as it finds; by positions it is known how many.
            by_position = operator is torch.ops.aten.index.Tensor and not any(
                index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
            )
            self.telling |= not by_position
        return operator(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Sees whether numbers are handed over as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.telling: bool = False

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.telling |= function in _HANDED_OVER
        return function(*args, **(kwargs or {}))


def _looks_at_numbers(recorder: ActivationRecorder, few: Tensor) -> bool:
    """Tell whether Python code gets to know numbers of tensors, be they constants or not."""
    # The next images are read meanwhile: threads that wait for a core would hold up the others.
    threads = using_threads(max(1, torch.get_num_threads() - 1))
    with threads, _Functions() as functions, _Operators() as operators:
        recorder(few)
    telling: bool = functions.telling or operators.telling
    return telling
