"""A mask survives another head: modules that are replaced in a masked model are checked at once."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

_GUARDED = "_watermark_guard_children"
_registered: list[Any] = []


class Applied(Protocol):
    """What is done to a model, and again to modules that take another's place."""

    def replace(self, parent: nn.Module, child: str, name: str, module: nn.Module | None) -> None:
        """Take note of a new module, of this qualified name."""


def guard(root: nn.Module, name: str, applied: Applied) -> None:
    """Have `applied.replace` called when the module of this qualified name is replaced."""
    parent, _, child = name.rpartition(".")
    root.get_submodule(parent).__dict__.setdefault(_GUARDED, {})[child] = applied, name
    listen()


def unguard(module: nn.Module, applied: Applied) -> None:
    """Forget everything that `guard` was told for `applied` in a module and those inside."""
    for submodule in module.modules():
        guarded = submodule.__dict__.get(_GUARDED, {})
        for child in [child for child, (owner, _) in guarded.items() if owner is applied]:
            del guarded[child]
        if not guarded:
            submodule.__dict__.pop(_GUARDED, None)


def listen() -> None:
    """Hear of every module that is put into another one, from now on."""
    # torch has no such hook for one module alone; this one costs a look-up per assignment.
    if not _registered:
        _registered.append(register_module_module_registration_hook(_on_registration))


def _on_registration(parent: nn.Module, child: str, module: nn.Module | None) -> None:
    applied, name = parent.__dict__.get(_GUARDED, {}).get(child, (None, ""))
    if applied is not None and module is not parent._modules.get(child):
        applied.replace(parent, child, name, module)
