"""Opening ONNX files: what they take, and whether onnxruntime can run them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.adapters.onnx_graph import OnnxGraph
from pytest_watermark_guard.models.adapters.onnx_model import OnnxInput, OnnxModel
from pytest_watermark_guard.models.loading.preprocessing import Preprocessing
from pytest_watermark_guard.models.loading.unpickling import first_line

_TYPES = ("float16", "float32", "float64", "uint8")
_SIDE = 224  # tried where the file leaves it open
_CHUNK = 2**24  # bytes


def open_onnx(path: Path) -> tuple[OnnxModel, Preprocessing | None, tuple[str, ...]]:
    """Open an ONNX file, whose weights may lie in files beside it.

    Returns
    -------
    model : OnnxModel
    preprocessing : Preprocessing or None
        What its input's size and type say; None where they say nothing.
    notes : tuple of str
        What was assumed.

    Raises
    ------
    ModelSpecError
        If it cannot be read, takes something else than one batch of images, or onnxruntime cannot
        run it.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401 - whether it is there
    except ModuleNotFoundError as error:
        raise ModelSpecError(
            f"{path} is run by onnxruntime, and {error.name} is not installed: "
            "pip install pytest-watermark-guard[onnx]"
        ) from error
    content = path.read_bytes()
    try:
        proto = onnx.load_model_from_string(content)
    except Exception as error:  # of protobuf, which may be one of several implementations
        raise ModelSpecError(f"{path} cannot be read as ONNX: {first_line(error)}") from error
    if not proto.graph.output:
        raise ModelSpecError(f"{path} cannot be read as ONNX: it has no graph with an output")
    try:
        identity = _identity(path, content, proto)
        graph = OnnxGraph(proto)
        taken = _input_of(path, graph)
    except ModelSpecError:
        raise
    except Exception as error:  # a look into a graph of another shape may raise anything
        raise ModelSpecError(
            f"{path} cannot be read as ONNX: {type(error).__name__}: {first_line(error)}"
        ) from error
    model = OnnxModel(path, content, taken, identity)
    try:
        model.session()
    except Exception as error:  # onnxruntime has a type for each of its states
        raise ModelSpecError(f"onnxruntime cannot open {path}: {first_line(error)}") from error
    notes: tuple[str, ...] = ()
    if taken.shape[1] is None:
        model, note = _ordered(model, graph)
        notes = (note,) if note else ()
    return model, _preprocessing_of(path, model.input), notes


def _identity(path: Path, content: bytes, proto: Any) -> str:
    total = hashlib.sha256(content)
    for name in sorted({*_external_files(proto)}):
        file = path.parent / name
        # By name: in the cache of a hub, each file is a link to its content.
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelSpecError(f"{path} was refused: it names weights elsewhere, in {name!r}")
        if not file.is_file():
            raise ModelSpecError(
                f"{path} has its weights in {name!r}, which is not there: put it into the same "
                "folder, under that name"
            )
        part = hashlib.sha256()
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                part.update(chunk)
        total.update(part.digest())
    return total.hexdigest()


def _external_files(proto: Any) -> Iterator[str]:
    for tensor in _tensors(proto.graph):
        if tensor.data_location == tensor.EXTERNAL:
            yield next(e.value for e in tensor.external_data if e.key == "location")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _input_of(path: Path, graph: OnnxGraph) -> OnnxInput:
    import onnx

    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs) or "none"
        raise ModelSpecError(
            f"{path} takes {len(graph.inputs)} inputs ({names}), and a probe has one batch of "
            "images to give: export the picture's part alone, or pass a function of a batch "
            "[B, C, H, W] that runs it"
        )
    (value,) = graph.inputs
    kind = value.type.tensor_type
    shaped = kind.HasField("shape")
    sides = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim]
    shape = tuple(sides) if shaped else (None,) * 4
    dtype = "no tensor"
    if kind.elem_type:
        dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))
    if dtype not in _TYPES or len(shape) != 4:
        said = ", ".join("any" if side is None else str(side) for side in shape)
        raise ModelSpecError(
            f"{path} takes {value.name!r}, {dtype} of shape [{said}], and not a batch of images "
            f"[B, C, H, W] or [B, H, W, C] in {', '.join(_TYPES[:-1])} or {_TYPES[-1]}: pass a "
            "function of a batch [B, C, H, W] that makes that of it and runs the file"
        )
    batch, second, third, fourth = shape
    if _is_last_channels(second, fourth):
        return OnnxInput(value.name, np.dtype(dtype), (batch, fourth, second, third), True)
    return OnnxInput(value.name, np.dtype(dtype), shape)


def _is_last_channels(second: int | None, fourth: int | None) -> bool:
    """Tell whether the last axis is that of the channels, by their usual numbers, or the fewest."""
    if second in (1, 3) or fourth in (1, 3):
        return second not in (1, 3)
    return second is not None and fourth is not None and fourth < second


def _ordered(model: OnnxModel, graph: OnnxGraph) -> tuple[OnnxModel, str]:
    """Find by trying whether a file that leaves it open takes [B, C, H, W] or [B, H, W, C]."""
    first = graph.first_layer()
    channels = 3 if first is None or first[1] is None else first[1]
    for channels_last in (False, True):
        shape = (model.batch_size, channels, *model.input.shape[2:])
        if channels_last:
            shape = (model.batch_size, channels, None, None)
        taken = replace(model.input, shape=shape, channels_last=channels_last)
        tried = model.taking(taken)
        sides = [side or _SIDE for side in shape[2:]]
        try:
            tried.run(torch.zeros(1, channels, *sides))
        except Exception:  # whatever it raises on another order
            continue
        order = "[B, H, W, C]" if channels_last else "[B, C, H, W]"
        return tried, f"{model.called} is fed {order} with {channels} channels, found by trying"
    return model, ""


def _preprocessing_of(path: Path, taken: OnnxInput) -> Preprocessing | None:
    _, channels, height, width = taken.shape
    size = None if height is None or width is None else (height, width)
    said = Preprocessing.imagenet(size or (_SIDE, _SIDE))
    where = f"the {size[0]}x{size[1]} px of {path.name}" if size else f"{_SIDE} px"
    if taken.takes_pixels:
        count = 1 if channels == 1 else 3
        return replace(
            said,
            mean=(0.0,) * count,
            std=(1 / 255,) * count,
            source=f"pixels from 0 to 255 at {where}, as its uint8 input says",
        )
    if size is None:
        return None
    source = f"assumed: ImageNet's mean and std, at {where}"
    return replace(said, source=source, assumed=True)
