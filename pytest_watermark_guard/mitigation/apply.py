"""Masking a model's features while it runs, and undoing it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError, MaskError
from pytest_watermark_guard.mitigation.anchors import (
    Anchor,
    ancestors,
    attached,
    find_anchors,
    follows,
    is_within,
)
from pytest_watermark_guard.mitigation.guard import guard, listen, unguard
from pytest_watermark_guard.mitigation.intervention import Intervention
from pytest_watermark_guard.models.adapters.adapter import called
from pytest_watermark_guard.models.loading.introspection import input_shape
from pytest_watermark_guard.models.reading.activations import ActivationRecorder
from pytest_watermark_guard.models.reading.foreign import explained
from pytest_watermark_guard.models.reading.outputs import main_tensor
from pytest_watermark_guard.models.state import eager, preserved, unwrapped
from pytest_watermark_guard.probing.context import current_run

_APPLIED = "_watermark_guard_applied"
_SIDE = 224


def apply_mask(
    model: nn.Module,
    mask: Intervention,
    *,
    example: Tensor | None = None,
    inplace: bool = False,
    strict: bool = True,
) -> nn.Module:
    """Return a model whose feature layer has the mask's units at zero.

    The features are changed below the head, as far from it as the architecture allows, so that the
    head may be called in any way, compiled, exported, trained and replaced: whenever ``model.fc``
    or the like is replaced, the model is run once to check that the new one's input is masked.

    Parameters
    ----------
    model : torch.nn.Module
        A classifier, or a backbone whose output is the features.
    mask : FeatureMask or FeatureErasure
    example : Tensor, optional
        Input [B, C, H, W] with which the place is looked for and checked; default two random
        images of the size that the model's preprocessing says.
    inplace : bool, default False
        Change `model` itself. Else a deep copy, without wrappers such as ``DataParallel`` and
        ``torch.compile``'s.
    strict : bool, default True
        Refuse a model whose weights below the head are not those that the mask was made for.

    Returns
    -------
    torch.nn.Module
        Its ``state_dict`` has the same keys as before. `remove_mask` undoes it.

    Raises
    ------
    MaskError
        If the mask is another model's, the model carries one already, or has no place for it.
    """
    target = model if inplace else copy.deepcopy(unwrapped(model))
    root = unwrapped(target)
    if applied_mask(root) is not None:
        raise MaskError(
            f"{type(root).__name__} carries a mask already: remove_mask it first, or make one mask "
            "from several scenarios"
        )
    with examined(root, example) as (recorder, inputs):
        check_fits(mask, recorder, inputs, strict)
        anchors = find_anchors(root, inputs, mask, recorder)
        heads = recorder.head_modules
    applied = Applied(root, mask, anchors, heads, inputs.cpu())
    applied.attach()
    return target


def remove_mask(model: nn.Module) -> nn.Module:
    """Undo `apply_mask`, in place.

    Raises
    ------
    MaskError
        If the model carries no mask.
    """
    _required(model).detach()
    return model


def applied_mask(model: nn.Module) -> Intervention | None:
    """Return the mask that a model, or a module inside it, carries; None if there is none."""
    applied = _applied(model)
    return None if applied is None else applied.mask


def masked_at(model: nn.Module) -> str:
    """Say where a model's mask works; empty if it carries none."""
    applied = _applied(model)
    return "" if applied is None else " and ".join(map(str, applied.anchors))


@contextmanager
def unmasked(model: nn.Module) -> Iterator[None]:
    """Run the block with the model's mask off."""
    applied = _required(model)
    applied.detach()
    try:
        yield
    finally:
        applied.attach()


@contextmanager
def examined(
    root: nn.Module, example: Tensor | None
) -> Iterator[tuple[ActivationRecorder, Tensor]]:
    """Give a recorder of a model's features, and an input, while it is safe to run the model."""
    with preserved(root), eager(root):
        inputs = _input_like(root, example)
        try:
            outputs = current_run().settings.outputs
            with explained(root, inputs, "finding its features"):
                recorder = ActivationRecorder(root, ("features",), inputs, outputs)
        except LayerError as error:
            raise MaskError(f"the features of {called(root)} are not found: {error}") from error
        if not recorder.hookable:
            raise MaskError(
                f"{called(root)} takes no hooks: mask the model that it was made from, and "
                "export or script that"
            )
        yield recorder, inputs


def check_fits(
    mask: Intervention, recorder: ActivationRecorder, inputs: Tensor, strict: bool
) -> None:
    """Raise `MaskError` unless a mask was made for this backbone."""
    name = type(recorder.module).__name__
    with recorder:
        width = recorder(inputs)["features"].shape[1]
    if width != mask.width:
        raise MaskError(
            f"the mask is for {mask.width} features, {name} has {width}: {mask.description}"
        )
    if strict and mask.weights and recorder.weights() != mask.weights:
        raise MaskError(
            f"the mask was made for other weights than those of this {name} ({mask.description}): "
            "which units are sensitive is a matter of the weights. Probe this model and make a "
            "mask from that report; or, if its weights differ by their precision only, pass "
            "strict=False"
        )


@dataclass
class Applied:
    """A mask at work in a model."""

    root: nn.Module
    mask: Intervention
    anchors: tuple[Anchor, ...]  # where it works
    heads: tuple[str, ...]  # names of the modules that take the features; empty for a backbone
    example: Tensor  # input with which a replaced module is checked
    _handles: list[Any] = field(default_factory=list)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        listen()  # also in a process that has only loaded or copied a masked model

    def attach(self) -> None:
        """Begin to mask."""
        self._handles = [anchor.attach(self.root, self.mask) for anchor in self.anchors]
        self.root.__dict__[_APPLIED] = self
        for name in {*self.heads, *(anchor.module for anchor in self.anchors)}:
            for parent in ancestors(name):
                guard(self.root, parent, self)

    def detach(self) -> None:
        """Stop masking."""
        for anchor, handle in zip(self.anchors, self._handles, strict=True):
            anchor.detach(self.root, handle)
        self._handles = []
        del self.root.__dict__[_APPLIED]
        unguard(self.root, self)

    def replace(self, parent: nn.Module, child: str, name: str, new: nn.Module | None) -> None:
        """Let a module be replaced by one that gets masked features, and mask those from now on.

        For another one a `MaskError` is raised, and the model is left as it was.
        """
        old = parent._modules[child]
        heads = tuple(dict.fromkeys(name if is_within(h, name) else h for h in self.heads))
        anchors = tuple(
            Anchor(name, True, a.dim) if a.of_input and is_within(a.module, name) else a
            for a in self.anchors
        )
        self.detach()
        parent._modules[child] = new
        try:
            reason = self._fails(anchors, heads) if new is not None else "nothing is there any more"
        except Exception as error:  # whatever a model raises that does not fit together
            reason = f"running the model raised {type(error).__name__}: {error}"
        if reason:
            parent._modules[child] = old
            self.attach()
            raise MaskError(
                f"{type(self.root).__name__}.{name} cannot be replaced by "
                f"{type(new).__name__} while its features are masked ({reason}). "
                f"{self._advice(name)}"
            )
        self.anchors, self.heads = tuple(dict.fromkeys(anchors)), heads
        self.attach()

    def _fails(self, anchors: tuple[Anchor, ...], heads: tuple[str, ...]) -> str:
        """Say what is wrong with a mask at these places; empty if nothing is."""
        root = self.root
        modules = dict(root.named_modules(remove_duplicate=False))
        for anchor in anchors:
            if anchor.module not in modules:
                return f"the mask works at {anchor}, which is gone"
        with preserved(root), eager(root):
            inputs = _input_like(root, self.example)
            plain = _reaching(root, heads, inputs)
            dims: dict[str, list[int]] = {}
            for head in heads or ("",):
                if head not in plain:
                    return f"{head!r} does not run when the model does"
                shape = plain[head].shape
                dims[head] = [dim for dim in (-1, 1) if shape[dim] == self.mask.width]
                if not dims[head]:
                    return (
                        f"the input of {head!r} has shape {[*shape]} and not the mask's "
                        f"{self.mask.width} features"
                    )
            with attached(root, anchors, self.mask):
                changed = _reaching(root, heads, inputs)
        for head, possible in dims.items():
            if not any(follows(self.mask, plain[head], changed[head], dim) for dim in possible):
                return f"the input of {head!r} would not be masked"
        return ""

    def _advice(self, name: str) -> str:
        inner = next((head for head in self.heads if is_within(head, name) and head != name), None)
        if inner is not None:
            return f"Replace {inner!r} alone, or remove_mask first"
        return "Use remove_mask, replace it, probe the model and mask it again"


class _Reached(Exception):  # noqa: N818 - no error: it ends a forward pass that has shown enough
    """All heads have got their input."""


def _reaching(root: nn.Module, heads: tuple[str, ...], inputs: Tensor) -> dict[str, Tensor]:
    """Return the input of each head that runs; for a backbone its output, under no name."""
    inputs_of: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            values = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if values:
                inputs_of[name] = values[0].clone()
            if len(inputs_of) == len(heads):
                raise _Reached

        return hook

    if not heads:
        return {"": main_tensor(root(inputs))[0]}
    with suppress(_Reached), ExitStack() as hooks:
        for name in heads:
            module = root.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(keep(name), with_kwargs=True))
        root(inputs)
    return inputs_of


def _required(model: nn.Module) -> Applied:
    applied = _applied(model)
    if applied is None:
        raise MaskError(f"{type(unwrapped(model)).__name__} carries no mask")
    return applied


def _applied(model: nn.Module) -> Applied | None:
    if not isinstance(model, nn.Module):
        raise MaskError(
            f"only a torch.nn.Module can carry a mask, and this is a {type(model).__name__}: mask "
            "the module, and export that"
        )
    carriers = (module.__dict__.get(_APPLIED) for module in unwrapped(model).modules())
    return next((applied for applied in carriers if applied is not None), None)


def _input_like(root: nn.Module, example: Tensor | None) -> Tensor:
    """Return an input on the model's device and in its precision; random if none is given."""
    tensors = (*root.parameters(), *root.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    if example is None:
        size, channels = input_shape(root)
        example = torch.randn(
            2, channels, *(size or (_SIDE, _SIDE)), generator=torch.Generator().manual_seed(0)
        )
    return example.to(like.device, like.dtype)
