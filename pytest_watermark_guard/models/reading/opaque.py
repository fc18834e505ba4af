"""Logits of models that show what they return and no more: TorchScript, functions, Keras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.adapters.function import FunctionModel
from pytest_watermark_guard.models.reading.outputs import (
    as_units,
    expected_outputs,
    fields_of,
    further_outputs,
    looks_channels_last,
    main_tensor,
)


def is_opaque(module: nn.Module) -> bool:
    """Tell whether a model shows what it returns and no more.

    Keras' models on torch are modules, but do not register their layers as such.
    """
    return isinstance(module, torch.jit.ScriptModule | FunctionModel) or any(
        kind.__module__.partition(".")[0] == "keras" for kind in type(module).__mro__
    )


def takes_hooks(part: nn.Module) -> bool:
    """Tell whether a part takes hooks: no scripted one does, and no traced one that was loaded."""
    return not isinstance(part, torch.jit.RecursiveScriptModule)  # type: ignore[attr-defined]


def parts_with_hooks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Give a model's parts that take hooks, and their names."""
    return ((name, part) for name, part in module.named_modules() if takes_hooks(part))


def is_in_vmap(value: Any) -> bool:
    """Tell whether a tensor, or one in a tuple and the like, is inside of ``torch.vmap``.

    Such a tensor cannot be read. Those inside of ``torch.func.vjp`` and its kind can.
    """
    functorch: Any = torch._C._functorch
    while isinstance(value, Tensor) and functorch.is_functorch_wrapped_tensor(value):
        if functorch.is_batchedtensor(value):
            return True
        value = functorch.get_unwrapped(value)
    return any(is_in_vmap(part) for part in fields_of(value).values() if isinstance(part, Tensor))


class OpaqueReader:
    """Nothing inside takes Python hooks: only what the model returns can be read."""

    batch_size = None

    def __init__(
        self, module: nn.Module, layers: tuple[str, ...], example: Tensor, outputs: str
    ) -> None:
        self._module = module
        returned = module(example)
        output, is_backbone = main_tensor(returned, len(example))
        self.headless = outputs == "features" or (is_backbone and outputs != "logits")
        kind = "features" if self.headless else "logits"
        self._more = further_outputs(returned, output, kind)
        self.more_outputs = tuple(self._more)
        self._channels_last = output.ndim == 4 and bool(looks_channels_last(output.shape))
        readable = ("features", "logits") if self.headless else ("logits",)
        hidden = [layer for layer in layers if layer not in readable]
        what, instead = _kind(module)
        if hidden and (len(hidden) == len(layers) or hidden != ["features"]):
            raise LayerError(
                f"layer {hidden[0]!r} of {what} cannot be read: ask for "
                f"layers={readable[:1]!r}, or {instead}"
            )
        self.left_out = tuple(hidden)
        self.notes = tuple(
            f"{layer} are not probed: {what} shows what it returns and no more; {instead}"
            for layer in hidden
        )

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """Return what the model returns as logits, or as features of a backbone."""
        output = self._module(x)
        units = as_units(main_tensor(output, len(x))[0], channels_last=self._channels_last)
        vectors = expected_outputs(output, len(x), self._more.values())
        more = {layer: vectors[name] for layer, name in self._more.items()}
        return {"logits": units, "features": units, **more}


def _kind(module: nn.Module) -> tuple[str, str]:
    """Say in words what a model is, and what to pass instead to have more than it returns read."""
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module", "give the model from which it was made"
    if isinstance(module, FunctionModel):
        return "a function", "pass the torch.nn.Module, or the .onnx file, that it runs"
    name = type(module).__name__
    return f"{name} of Keras", "let it return them beside its logits"
