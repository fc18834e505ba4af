"""ONNX files as models: the file that is shipped is what runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pytest_watermark_guard.errors import PreprocessingError, SettingsError
from pytest_watermark_guard.models.adapters.adapter import AdaptedModel
from pytest_watermark_guard.models.adapters.onnx_graph import OnnxGraph

_CUDA = "CUDAExecutionProvider"
# TensorFloat-32 is no float32, and algorithms that are chosen by time change the last bits.
_EXACT = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
_FOLDER = "session.model_external_initializers_file_folder_path"
_FATAL = 4  # of onnxruntime's own log: what fails is raised as well


@dataclass(frozen=True)
class OnnxInput:
    """What an ONNX file says of its one input.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    shape : tuple of (int or None)
        [B, C, H, W], whatever the file's own order; None stands for a side that may vary.
    channels_last : bool
        The file takes [B, H, W, C].
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    channels_last: bool = False

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes whole numbers from 0 to 255."""
        return self.dtype == np.uint8

    def feed(self, x: Tensor) -> npt.NDArray[Any]:
        """Return a batch [B, C, H, W] as the file takes it.

        Raises
        ------
        PreprocessingError
            If its shape or its values are others.
        """
        wanted = (None, *self.shape[1:])
        if x.ndim != 4 or any(
            side not in (None, have) for side, have in zip(wanted, x.shape, strict=True)
        ):
            sides = ", ".join("any" if side is None else str(side) for side in self.shape)
            raise PreprocessingError(
                f"the ONNX file takes batches of shape [{sides}], not {[*x.shape]}: preprocess to "
                "that size, or export it with dynamic axes"
            )
        if self.takes_pixels:
            x = _pixels(x)
        if self.channels_last:
            x = x.permute(0, 2, 3, 1)
        return np.ascontiguousarray(x.detach().cpu().numpy().astype(self.dtype))


def _pixels(x: Tensor) -> Tensor:
    low, high = (float(value) for value in torch.aminmax(x))
    # An image that is black all over has no larger values either, but whole ones.
    if low < -0.5 or high > 255.5 or (high <= 1 and bool((x != x.round()).any())):
        raise PreprocessingError(
            f"the ONNX file takes pixels from 0 to 255 (uint8), and got values from {low:.3g} to "
            f'{high:.3g}: leave preprocess="auto", or pass preprocess=Preprocessing(size=..., '
            "mean=(0, 0, 0), std=(1 / 255,) * 3)"
        )
    return x.round()


class OnnxModel(AdaptedModel):
    """Runs an ONNX file by onnxruntime.

    Parameters
    ----------
    path : Path
        Of the file.
    content : bytes
        What is in it.
    graph_input : OnnxInput
    identity : str
        Digest of the file and of those with its weights.
    """

    def __init__(self, path: Path, content: bytes, graph_input: OnnxInput, identity: str) -> None:
        import onnxruntime

        super().__init__()
        self.identity = identity
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.input = graph_input
        self._path = path.absolute()
        self._content = content
        self._device = torch.device("cpu")
        self._opened: tuple[tuple[str, ...], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # a session cannot be copied; it is opened anew

    @property
    def called(self) -> str:
        """The file's name."""
        return self._path.name

    @property
    def computes(self) -> str:
        """That no setting changes what the file says."""
        return f"as the file has it ({self.input.dtype} input)"

    def placed(self, device: torch.device) -> OnnxModel:
        """Return a copy that runs on a device, if it is another.

        Raises
        ------
        SettingsError
            If onnxruntime cannot run there.
        """
        if device == self._device:
            return self
        placed = self.taking(self.input)
        placed._device = device
        placed.session()
        return placed

    def placed_by_default(self, device: torch.device) -> tuple[OnnxModel, torch.device, str]:
        """Return itself on the CPU where onnxruntime cannot use the GPU."""
        try:
            return self.placed(device), device, ""
        except SettingsError as error:
            return self, torch.device("cpu"), f"{self.called} runs on the CPU: {error}"

    def graph(self) -> OnnxGraph:
        """Return the file's graph, with its local functions written out."""
        import onnx
        from onnx.inliner import inline_local_functions

        model = onnx.load_model_from_string(self._content)
        if model.functions:
            model = inline_local_functions(model)
        return OnnxGraph(model)

    def opened(self, content: bytes) -> Any:
        """Return a session for a graph made of parts of the file."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry(_FOLDER, str(self._path.parent))
        return onnxruntime.InferenceSession(content, options, providers=self._providers())

    def _providers(self) -> list[Any]:
        import onnxruntime

        if self._device.type == "cpu":
            return ["CPUExecutionProvider"]
        if self._device.type != "cuda" or _CUDA not in onnxruntime.get_available_providers():
            raise SettingsError(
                f"device {str(self._device)!r}: this onnxruntime runs ONNX files on the CPU alone. "
                "Use device='cpu', or, for CUDA, pip install onnxruntime-gpu in place of "
                "onnxruntime"
            )
        return [(_CUDA, {**_EXACT, "device_id": str(self._device.index or 0)})]

    def session(self, values: tuple[str, ...] = ()) -> Any:
        """Return a session that gives some of the graph's values beside its outputs.

        The last one stays open: each has its own copy of the weights.
        """
        if self._opened is None or self._opened[0] != values:
            self._opened = None
            session = self.opened(self.graph().with_outputs(values) if values else self._content)
            # Where a library of CUDA's is missing, onnxruntime takes the CPU without an error.
            if self._device.type == "cuda" and _CUDA not in session.get_providers():
                raise SettingsError(
                    f"device {str(self._device)!r}: onnxruntime could not load its CUDA libraries "
                    "and fell back to the CPU. Install those that this onnxruntime-gpu was built "
                    "for, or use device='cpu'"
                )
            self._opened = values, session
        return self._opened[1]

    def taking(self, graph_input: OnnxInput) -> OnnxModel:
        """Return a copy that is fed otherwise."""
        return OnnxModel(self._path, self._content, graph_input, self.identity)

    @property
    def batch_size(self) -> int | None:
        """How many images the file takes at a time, where it takes no other number."""
        return self.input.shape[0]

    def run(
        self, x: Tensor, values: Sequence[str] = (), batch_size: int | None = None
    ) -> dict[str, Any]:
        """Run the file on a batch of any length.

        Parameters
        ----------
        x : Tensor
            [B, C, H, W].
        values : sequence of str
            Of the graph, beside its outputs.
        batch_size : int, optional
            Images at a time. Default: as the file says, else all.

        Returns
        -------
        dict of str to Tensor
            Outputs and values by name, on the batch's device; what is no tensor is left as it is.
        """
        session = self.session(tuple(values))
        names = [output.name for output in session.get_outputs()]
        feed = {self.input.name: self.input.feed(x)}
        outputs = run_in_batches(session, feed, batch_size or self.batch_size)
        return {
            name: _as_tensor(value, x.device) for name, value in zip(names, outputs, strict=True)
        }

    def forward(self, x: Tensor) -> Any:
        """Return the file's only output, or all of them by name."""
        outputs = self.run(x)
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs


def run_in_batches(
    session: Any, feed: Mapping[str, npt.NDArray[Any]], size: int | None
) -> list[Any]:
    """Run a session on arrays with a row for each image, and return its outputs, in order.

    With a `size`, so many rows at a time: a last batch that is shorter is filled up, and outputs
    without a row for each image are those of the first batch.
    """
    if size is None:
        return _run(session, feed)
    images = len(next(iter(feed.values())))
    batches = []
    for first in range(0, images, size):
        rows = np.minimum(np.arange(first, first + size), images - 1)
        batches.append(_run(session, {name: array[rows] for name, array in feed.items()}))
    return [
        np.concatenate(parts)[:images]
        if all(isinstance(part, np.ndarray) and part.shape[:1] == (size,) for part in parts)
        else parts[0]
        for parts in zip(*batches, strict=True)
    ]


def _run(session: Any, feed: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
    try:
        outputs: list[Any] = session.run(None, dict(feed))
    except Exception as error:
        # In the words of torch's own errors: the batch is halved then.
        if "Failed to allocate memory" in str(error):
            raise RuntimeError(f"out of memory in onnxruntime: {error}") from error
        raise
    return outputs


def _as_tensor(value: Any, device: torch.device) -> Any:
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return torch.from_numpy(value).to(device) if numbers else value
