"""Letting someone do to a model whatever they like, and then undoing all of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pytest_watermark_guard.models.state import overwrite

_CONTAINERS = (dict, OrderedDict, list, set)
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Undo, after the block, everything that it does to a model; also when it raises.

    Put back are which modules, parameters, buffers and hooks there are, every tensor's values,
    storage, ``requires_grad`` and ``grad``, the training flags, and the other attributes of each
    module: what they refer to and, for lists, dicts and sets, what these hold. Values cost a
    second copy of the weights until then.

    Parameters
    ----------
    model : torch.nn.Module
    """
    modules = [_ModuleState(module) for module in model.modules()]
    by_id = {id(tensor): tensor for state in modules for tensor in state.tensors()}
    tensors = [_TensorState(tensor) for tensor in by_id.values()]
    try:
        yield
    finally:
        for module in modules:
            module.restore()
        for tensor in tensors:
            tensor.restore()


class _ModuleState:
    """What a module consists of, but for the values of tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._class = type(module)  # it changes when a module is parametrized
        self._attributes = dict(vars(module))
        self._contents = [
            (value, value.copy())
            for value in self._attributes.values()
            if type(value) in _CONTAINERS
        ]

    def tensors(self) -> Iterator[Tensor]:
        values = list(self._attributes.values())
        for container, _ in self._contents:
            values += container.values() if isinstance(container, dict) else container
        return (value for value in values if isinstance(value, Tensor))

    def restore(self) -> None:
        if type(self._module) is not self._class:
            self._module.__class__ = self._class
        attributes = vars(self._module)
        attributes.clear()
        attributes.update(self._attributes)
        for container, contents in self._contents:
            # The object itself is refilled: handles that remove hooks refer to it.
            if isinstance(container, list):
                container[:] = contents
            else:
                container.clear()
                container.update(contents)


class _TensorState:
    """A tensor's values and everything that hangs on it."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._storage = tensor.detach()
        self._values = tensor.detach().clone()
        self._requires_grad = tensor.requires_grad
        grad = tensor.grad if tensor.is_leaf else None
        self._grad = None if grad is None else _TensorState(grad)
        self._hooks = {name: dict(getattr(tensor, name, None) or {}) for name in _TENSOR_HOOKS}

    def restore(self) -> Tensor:
        tensor = self._tensor
        if not _same_storage(tensor, self._storage):
            tensor.data = self._storage  # `model.half()` and the like replace it
        # Writing bumps the version counter, which a pending backward checks.
        if not torch.equal(tensor.detach(), self._values):
            overwrite(tensor, self._values)
        if tensor.is_leaf:
            if tensor.requires_grad != self._requires_grad:
                tensor.requires_grad_(self._requires_grad)
            tensor.grad = None if self._grad is None else self._grad.restore()
        for name, hooks in self._hooks.items():
            now = getattr(tensor, name, None)
            if now is not None:  # autograd goes on using this object: it is refilled
                now.clear()
                now.update(hooks)
        return tensor


def _same_storage(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.device == other.device
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.data_ptr() == other.data_ptr()
    )
