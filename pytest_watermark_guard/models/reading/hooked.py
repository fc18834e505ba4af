"""Logits, features and named layers of a module, taken by forward hooks."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.reading.bottleneck import of_images
from pytest_watermark_guard.models.reading.heads import Head, find_head
from pytest_watermark_guard.models.reading.layers import (
    NO_CLASSIFIER,
    Tap,
    Trace,
    classifier_names,
    map_convention,
    named_layer,
    trace_calls,
)
from pytest_watermark_guard.models.reading.opaque import takes_hooks
from pytest_watermark_guard.models.reading.outputs import (
    NO_FEATURES,
    combined,
    expected_outputs,
    further_outputs,
    is_dense,
    main_tensor,
    vector_outputs,
)
from pytest_watermark_guard.models.reading.passed import first_tensor

_UNSEEN = (
    "features are not probed: the model calls its layers past torch's hooks, as Keras does; wrap "
    "it in a module that returns the features, with outputs='features'"
)

_IN_VMAP = (
    "features are not probed: the model runs its layers inside of torch.vmap, where they cannot be "
    "read; wrap it in a module that returns the features, with outputs='features'"
)

_IN_TORCHSCRIPT = (
    "features are not probed: the head may be in {name!r}, which is TorchScript and takes no "
    "hooks; put the module that it was made from in its place, or say outputs='features' if there "
    "is no head"
)


class HookReader(contextlib.AbstractContextManager["HookReader"]):
    """Takes activations with forward hooks, which stay while it is entered."""

    batch_size: int | None = None

    def __init__(
        self, module: nn.Module, layers: tuple[str, ...], example: Tensor, outputs: str
    ) -> None:
        self.module = module
        self._run: Callable[[Tensor], Any] = module
        self._main_name: str | None = None
        self._more: dict[str, str] = {}
        self._output = Tap("")
        self.left_out: tuple[str, ...] = ()
        notes: list[str | None] = []
        self._taps: dict[str, tuple[tuple[Tap, ...], ...]] = {}  # groups: see `Head`
        trace = trace_calls(module, example)
        to_be_found = outputs == "auto" and classifier_names(module) != NO_CLASSIFIER
        sealed = _sealed_part(module) if to_be_found else None
        unseen = _IN_VMAP if trace.in_vmap else _UNSEEN if _runs_unseen(module, trace) else ""
        if unseen and outputs == "auto":
            outputs = "logits"  # that no head was seen says nothing
        # Of a detector, layers can be read that are named; its output is none of them.
        self._read_output = not {"logits", "features"}.isdisjoint(layers)
        head = None
        self.headless = True
        sides = example.shape[2:] if outputs == "auto" else ()
        if self._read_output or not is_dense(trace.output, sides):
            output, is_backbone = main_tensor(trace.output, len(example), sides)
            is_backbone = outputs == "features" or (is_backbone and outputs != "logits")
            self._vectors = {} if is_backbone else vector_outputs(trace.output, len(example))
            head = None if is_backbone else self._find_head(example, trace, output)
            if head is None and not is_backbone and sealed is not None:
                outputs = "logits"  # the head may be in there
            self.headless = head is None and outputs != "logits"
            if head is None:
                if not self.headless:
                    self.left_out = ("features",)
                channels_last, note = map_convention(module, "", output.shape, trace)
                self._output = Tap("", channels_last=channels_last)
                notes.append(note)
            kind = "features" if self.headless else "logits"
            main = self.main(trace.output, len(example))
            self._more = further_outputs(trace.output, main, kind)
        self.head = () if head is None else tuple(chain.from_iterable(head.taps))
        for layer in layers:
            if layer in self.left_out:
                in_torchscript = sealed and _IN_TORCHSCRIPT.format(name=sealed)
                notes.append(in_torchscript or unseen or NO_FEATURES)
            elif layer == "features":
                if head is not None:
                    self._taps[layer] = head.taps
                    notes.append(head.note)
            elif layer != "logits":
                tap, note = named_layer(module, layer, trace)
                self._taps[layer] = ((tap,),)
                notes.append(note)
        self.notes = tuple(note for note in notes if note)
        self._handles: list[Any] = []
        self._counts: dict[tuple[str, bool], int] = {}
        self._kept: dict[Tap, list[Tensor]] = {}

    def _find_head(self, example: Tensor, trace: Trace, output: Tensor) -> Head | None:
        """Find what makes the logits, and which of several outputs they are."""
        names = sorted(self._vectors, key=lambda name: self._vectors[name] is not output)
        head = None
        for name in names:
            self._main_name = name
            head = find_head(
                self.module,
                example,
                trace,
                self._vectors[name],
                lambda x: self.main(self.module(x), len(x)).float(),
            )
            if head is not None:
                break
        else:
            self._main_name = names[0] if names else None
        return head

    def main(self, output: Any, images: int) -> Tensor:
        """Return the output that the logits, or a backbone's features, are."""
        if self._main_name is None:
            return main_tensor(output, images)[0]
        return expected_outputs(output, images, (self._main_name,))[self._main_name]

    @property
    def more_outputs(self) -> tuple[str, ...]:
        """Layers of further outputs of shape [B, C], such as "logits[shape]"."""
        return tuple(self._more)

    @property
    def tapped(self) -> frozenset[str]:
        """Names of the modules whose inputs or outputs are read."""
        return frozenset(tap.module for tap in self._all_taps())

    def _all_taps(self) -> Iterator[Tap]:
        return chain.from_iterable(chain.from_iterable(self._taps.values()))

    def copied(self) -> HookReader:
        """Return a reader of the same layers on a copy of the model."""
        hooked = bool(self._handles)
        self.__exit__()  # a copied hook would write into this reader
        try:
            twin = copy.copy(self)
            twin._run = twin.module = copy.deepcopy(self.module)
        finally:
            if hooked:
                self.__enter__()
        twin._handles, twin._counts, twin._kept = [], {}, {}
        return twin

    def compile(self, batch_size: int) -> None:
        """Have the model compiled on its next call, for batches of one size."""
        on_gpu = any(p.is_cuda for p in self.module.parameters())
        options: dict[str, Any] = {"options": {"freezing": True}}  # weights laid out for the CPU
        if on_gpu:
            options = {"mode": "reduce-overhead"}  # CUDA graphs
        self._run = torch.compile(self.module, dynamic=False, **options)
        self.batch_size = batch_size

    def __enter__(self) -> HookReader:
        try:
            for name, of_input in {(tap.module, tap.of_input) for tap in self._all_taps()}:
                hook = self._hook(name, of_input)
                submodule = self.module.get_submodule(name)
                if of_input:
                    handle = submodule.register_forward_pre_hook(hook, with_kwargs=True)
                else:
                    handle = submodule.register_forward_hook(hook)
                self._handles.append(handle)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, name: str, of_input: bool) -> Callable[[nn.Module, Any, Any], None]:
        taps = [tap for tap in self._all_taps() if (tap.module, tap.of_input) == (name, of_input)]

        def keep(_module: nn.Module, args: Any, rest: Any) -> None:
            # `rest` holds a pre-hook's keyword arguments, or a forward hook's output. This is
            # compiled with the model: nothing is done here that torch.compile cannot follow.
            index = self._counts[name, of_input] = self._counts.get((name, of_input), -1) + 1
            value = first_tensor(args, rest) if of_input else rest
            for tap in taps:
                if tap.call in (-1, index):
                    if not isinstance(value, Tensor):
                        raise LayerError(f"layer {name!r} did not run on a tensor")
                    self._kept.setdefault(tap, []).append(tap.read(value))

        return keep

    def _units(self, tap: Tap, images: int) -> Tensor:
        """Return [B, units] of what one tap took."""
        taken = self._kept[tap]
        if tap.layout == "calls":
            return torch.cat(taken)
        return of_images(taken[-1], images, tap.layout)

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """Return logits, further outputs and all layers asked for, each [B, units]."""
        self._counts.clear()
        self._kept.clear()
        try:
            filled = self._filled(x)
            output = self._run(filled)
            result = {}
            if self._read_output:
                units = self._output.read(self.main(output, len(filled)))
                result = {"logits": units, "features": units}
            if self._more:
                vectors = expected_outputs(output, len(filled), self._more.values())
                result |= {layer: vectors[name].clone() for layer, name in self._more.items()}
            for layer, groups in self._taps.items():
                if any(tap not in self._kept for tap in chain.from_iterable(groups)):
                    raise LayerError(
                        f"layer {layer!r} ran when the layers were found and did not run on a "
                        f"batch of shape {[*x.shape]}"
                    )
                parts = [
                    combined([self._units(tap, len(filled)) for tap in group]) for group in groups
                ]
                result[layer] = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            return {layer: units[: len(x)] for layer, units in result.items()}
        finally:
            self._kept.clear()

    def _filled(self, x: Tensor) -> Tensor:
        """Fill a batch up to the size that the model was compiled for: another compiles anew."""
        if self.batch_size is None:
            return x
        if x.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        missing = self.batch_size - len(x)
        return nn.functional.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) if missing else x


def _runs_unseen(module: nn.Module, trace: Trace) -> bool:
    """Tell whether layers with parameters ran, and none of them by ``nn.Module.__call__``."""
    inside = any(part is not module and part._parameters for part in module.modules())
    return inside and not any(call.tap.module for call in trace.calls)


def _sealed_part(module: nn.Module) -> str | None:
    """Return the name of the last part with parameters that is scripted, and not inside of one."""
    sealed = [
        name
        for name, part in module.named_modules()
        if not takes_hooks(part)
        and takes_hooks(module.get_submodule(name.rpartition(".")[0]))
        and any(True for _ in part.parameters())
    ]
    return sealed[-1] if sealed else None
