"""What a model does with its input before its first layer, found by running it that far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_watermark_guard.models.adapters.onnx_model import OnnxModel
from pytest_watermark_guard.models.device import computing_in
from pytest_watermark_guard.models.state import eager, input_dtype, preserved, unwrapped

_COUNTS = (3, 1, 4, 2, 6, 8, 9, 10, 12, 13, 5)  # of channels, tried where no layer tells
_SIDE = 224
_ROUNDING = 0.02  # of half precision


@dataclass(frozen=True)
class FirstLayer:
    """What reaches the first layer with weights.

    Attributes
    ----------
    channels : int or None
        Of the model's input; None: no layer says, and 3 are taken.
    mean, std : tuple of float, or None
        What the model subtracts and divides by itself before its first layer (0 and 1: nothing);
        None where that cannot be told.
    """

    channels: int | None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def read_first_layer(module: nn.Module, size: tuple[int, int] | None) -> FirstLayer | None:
    """Run a model up to its first convolution or linear layer.

    Parameters
    ----------
    module : torch.nn.Module
        Comes back as it was.
    size : (int, int), optional
        Height and width of its input.

    Returns
    -------
    FirstLayer or None
        None where it does not run on any batch [1, C, H, W], or would become another model by
        that: lazy layers take their shapes from the first batch.
    """
    module = unwrapped(module)
    if isinstance(module, OnnxModel):
        return _of_graph(module, size)
    if _is_lazy(module):
        return None
    with preserved(module), eager(module), computing_in("float32", _computer(module)):
        for count in _COUNTS:
            reached = _run(module, count, size)
            if reached is None:
                continue
            if reached is _ALL_TAKEN:
                return FirstLayer(None if count == 3 else count)
            wanted = count
            if reached.got != reached.expected:
                each, rest = divmod(reached.got, count)  # more than 1 where pixels became channels
                if rest or reached.expected % each:
                    continue
                wanted = reached.expected // each
                reached = _run(module, wanted, size)
                if not isinstance(reached, _Reached) or reached.got != reached.expected:
                    continue
            return FirstLayer(wanted, *_scaling(reached))
    return None


def runs_on(module: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    """Tell whether a model, which comes back as it was, takes a batch [1, channels, *size]."""
    module = unwrapped(module)
    if _is_lazy(module):
        return True
    with preserved(module), computing_in("float32", _computer(module)):
        try:
            module(_batch(module, channels, size))
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # whatever it raises on an input that it does not take
            return False
    return True


def _of_graph(model: OnnxModel, size: tuple[int, int] | None) -> FirstLayer | None:
    """Read an ONNX file's first layer by running it that far; None where it does not run."""
    found = model.graph().first_layer()
    value, channels = found or (model.input.name, None)
    channels = model.input.shape[1] or channels
    shape = (1, channels or 3, *(size or (_SIDE, _SIDE)))
    generator = torch.Generator().manual_seed(0)
    if model.input.takes_pixels:
        fed = torch.randint(256, shape, generator=generator).float()
    else:
        fed = torch.rand(shape, generator=generator)
    if found is None or value == model.input.name:
        unchanged = (0.0,) * shape[1], (1.0,) * shape[1]
        return FirstLayer(channels, *(unchanged if found else (None, None)))
    try:
        seen = model.run(fed, (value,))[value]
    except Exception:  # whatever it raises on an input that it does not take
        return FirstLayer(channels)
    return FirstLayer(channels, *_scaling(_Reached(fed, seen, 0, 0)))


class _Reached(Exception):  # noqa: N818 - no error: it ends a run that has told enough
    def __init__(self, fed: Tensor | None, seen: Tensor | None, got: int, expected: int) -> None:
        super().__init__("the first layer was reached")
        self.fed, self.seen, self.got, self.expected = fed, seen, got, expected


_ALL_TAKEN = _Reached(None, None, 0, 0)


def _run(module: nn.Module, count: int, size: tuple[int, int] | None) -> _Reached | None:
    fed = _batch(module, count, size)
    mode = _UpToFirstLayer()
    try:
        with mode:
            module(fed)
    except Exception:  # whatever a model raises on an input that it does not take
        if mode.reached is None:
            return None
    if mode.reached is None:
        return _ALL_TAKEN
    mode.reached.fed = fed
    return mode.reached


def _batch(module: nn.Module, count: int, size: tuple[int, int] | None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1, count, *(size or (_SIDE, _SIDE)), generator=generator)
    return values.to(_device_of(module), input_dtype(module))


def _is_lazy(module: nn.Module) -> bool:
    return any(map(nn.parameter.is_lazy, (*module.parameters(), *module.buffers())))


def _computer(module: nn.Module) -> torch.device:
    device = _device_of(module)
    return torch.device("cpu") if device.type == "meta" else device


def _device_of(module: nn.Module) -> torch.device:
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


class _UpToFirstLayer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Ends a run at the first operation with a matrix or filters, whoever calls it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reached: _Reached | None = None  # TorchScript raises something else in its place

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("convolution", "conv1d", "conv2d", "conv3d") and not _transposed(name, args):
            seen, filters = args[:2]
            groups = args[8] if name == "convolution" else _groups(args, kwargs)
            channel = 1 if seen.ndim == filters.ndim else 0
            self.reached = _Reached(None, seen, seen.shape[channel], filters.shape[1] * groups)
            raise self.reached
        if name in ("addmm", "mm", "linear"):
            seen, matrix = args[1:3] if name == "addmm" else args[:2]
            expected = matrix.shape[1] if name == "linear" else matrix.shape[0]
            self.reached = _Reached(None, None, seen.shape[-1], expected)
            raise self.reached
        return func(*args, **(kwargs or {}))


def _transposed(name: str, args: tuple[Any, ...]) -> bool:
    return name == "convolution" and bool(args[6])


def _groups(args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> int:
    return int(args[6] if len(args) > 6 else (kwargs or {}).get("groups", 1))


def _scaling(reached: _Reached) -> tuple[tuple[float, ...], tuple[float, ...]] | tuple[None, None]:
    """Fit one line a channel from what was fed to what was seen, where there is one."""
    fed, seen = reached.fed, reached.seen
    if (
        fed is None
        or seen is None
        or fed.is_meta
        or seen.ndim != 4
        or seen.shape[1] != fed.shape[1]
    ):
        return None, None
    extra = [seen.shape[axis] - fed.shape[axis] for axis in (2, 3)]
    if min(extra) < 0:
        return None, None
    # Layers pad before they filter.
    top, left = (more // 2 for more in extra)
    height, width = fed.shape[2:]
    before = fed[0].flatten(1).double().cpu()
    after = seen[0, :, top : top + height, left : left + width].flatten(1).double().cpu()
    x, y = before - before.mean(1, keepdim=True), after - after.mean(1, keepdim=True)
    slope = (x * y).sum(1) / (x * x).sum(1)
    if not torch.isfinite(slope).all() or not (slope > 0).all():
        return None, None
    spread = y.square().mean(1).sqrt()
    off = (y - slope[:, None] * x).abs().amax(1)
    if not (off <= _ROUNDING * spread).all():
        return None, None
    mean = before.mean(1) - after.mean(1) / slope
    return tuple(mean.tolist()), tuple((1 / slope).tolist())
