"""Objects that hold or resemble a model, and what to pass instead of them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from pytest_watermark_guard.errors import ModelSpecError
from pytest_watermark_guard.models.adapters.adapter import called
from pytest_watermark_guard.models.adapters.function import FunctionModel

AnyModel: TypeAlias = "nn.Module | str | os.PathLike[str] | Callable[[torch.Tensor], Any]"
"""A module, a model spec, the path of a .onnx or .pt2 file, or a function of a batch."""

_EXPECTED = "model must be a torch.nn.Module, a model spec or a function from a batch to logits"
_INSIDE = ("model", "module", "module_", "net", "network", "backbone")
_TOWERS = ("vision_model", "image_model", "vision_tower")
_TEXT = ("text_model", "text_encoder", "language_model")


def name_of(model: AnyModel) -> str:
    """Return what reports call a model if nobody named it."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    return called(model if isinstance(model, nn.Module) else FunctionModel(model))


def check_module(model: Any) -> nn.Module:
    """Return a model that can be run on pictures as it is; a function becomes a module.

    Raises
    ------
    ModelSpecError
        If it is something else; says what to pass instead.
    """
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        instead = _instead_of_object(model, name)
        if instead is not None:
            raise ModelSpecError(f"{_EXPECTED}, got {instead}")
        return FunctionModel(model)
    instead = _instead_of_module(model)
    if instead is not None:
        raise ModelSpecError(f"{name} {instead}")
    return model


def _instead_of_object(model: Any, name: str) -> str | None:
    if isinstance(model, str):
        return f"the text {model!r}: pass load_model({model!r}).module"
    if isinstance(model, os.PathLike):
        return (
            f"{name}: a path is that of a .onnx or .pt2 file; a checkpoint is named with its "
            f"architecture, such as 'torchvision:resnet18?weights={os.fspath(model)}'"
        )
    if isinstance(model, type):
        return f"the class {model.__name__}: pass an instance of it"
    if isinstance(model, Mapping):
        return (
            f"{name}, which is weights without an architecture: load them into a model, "
            "model.load_state_dict(...), and pass that; or name both, such as "
            "'torchvision:resnet18?weights=FILE'"
        )
    if isinstance(model, torch.export.ExportedProgram):
        return (
            f"{name}: pass its .module(), or write it by torch.export.save and name the .pt2 file"
        )
    inside = next((n for n in _INSIDE if isinstance(getattr(model, n, None), nn.Module)), None)
    if inside is not None:
        processor = getattr(model, "image_processor", None)
        more = "" if processor is None else ", and its .image_processor as preprocess="
        return f"{name}: pass its .{inside}{more}"
    return None if callable(model) else name


def _instead_of_module(model: nn.Module) -> str | None:
    children = dict(model.named_children())
    if any(kind.__module__.startswith("ultralytics.engine.") for kind in type(model).__mro__):
        return "wraps the network: pass its .model"
    if not _has_forward(model):
        nets = [name for name, child in children.items() if _has_forward(child)]
        there = f"pass what it runs, such as its .{nets[0]}" if nets else "it cannot be run"
        return f"has no forward: {there}"
    tower = next((tower for tower in _TOWERS if tower in children), None)
    # A module of somebody's own may well take pictures alone.
    takes_text = any(text in children for text in _TEXT) and _is_of_transformers(model)
    if hasattr(model, "encode_image") and "visual" in children and _required(model) > 1:
        tower, takes_text = "visual", True
    if tower and takes_text:
        return (
            f"takes text beside pictures: pass its picture tower, .{tower}, or wrap it in a module "
            "whose forward takes pictures alone"
        )
    tensors = (*model.parameters(), *model.buffers())
    if any(tensor.is_meta for tensor in tensors if not nn.parameter.is_lazy(tensor)):
        return (
            "is on the meta device, where weights have no values: build it on the CPU, or "
            "model.to_empty(device='cpu') and load its weights"
        )
    return None


def _has_forward(model: nn.Module) -> bool:
    kind = type(model)
    if "forward" in vars(model) or kind.__call__ is not nn.Module.__call__:
        return True
    owner = next(base for base in kind.__mro__ if "forward" in vars(base))
    return owner is not nn.Module and owner.__name__ != "LightningModule"


def _required(model: nn.Module) -> int:
    """Return how many arguments a forward pass cannot do without."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _is_of_transformers(model: nn.Module) -> bool:
    return hasattr(getattr(model, "config", None), "model_type")
