"""Recording layers' activations as units, in one forward pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.identity import weights_identity
from pytest_watermark_guard.models.near_misses import check_module
from pytest_watermark_guard.models.reading.bottleneck import first_tensor, of_images
from pytest_watermark_guard.models.reading.exported import ExportedReader, is_exported
from pytest_watermark_guard.models.reading.foreign import explained
from pytest_watermark_guard.models.reading.heads import Head, find_head
from pytest_watermark_guard.models.reading.layers import (
    Tap,
    Trace,
    map_convention,
    named_layer,
    trace_calls,
)
from pytest_watermark_guard.models.reading.outputs import (
    as_units,
    combined,
    looks_channels_last,
    main_tensor,
    vector_outputs,
)
from pytest_watermark_guard.models.state import eager, preserved, unwrapped

_NO_HEAD = "no head found: the model's output is probed as its features, and there are no logits"
_NO_FEATURES = (
    "features are not probed: no tensor was found of which the model makes its output; name a layer"
)
_EXAMPLES = 4


class _Reader(Protocol):
    headless: bool
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def more_outputs(self) -> tuple[str, ...]: ...

    @property
    def batch_size(self) -> int | None: ...

    def read(self, x: Tensor) -> dict[str, Tensor]: ...


class ActivationRecorder:
    """Runs a model and returns chosen layers' activations, one number per image and unit.

    Use it as a context manager: inside, the model is in evaluation mode, without gradients and
    with hooks; outside, it is as it was.

    Parameters
    ----------
    module : torch.nn.Module
        Any model from images to logits, or a backbone. It runs where it is.
    layers : sequence of str
        ``"logits"``, ``"features"`` (the input of the layer that makes the logits), or the
        qualified name of any submodule, of which the output is taken.
    example : Tensor
        Preprocessed batch [B, C, H, W] on the model's device, used to find the layers. Two
        different images are enough.
    outputs : {"auto", "logits", "features"}
        What the model returns; "auto" goes by its attribute ``outputs``, then by trying.

    Attributes
    ----------
    layers : tuple of str
        The layers that calls return: those asked for, without ``"logits"`` for a backbone.
    notes : tuple of str
        What was guessed or left out.
    batch_size : int or None
        The batch size that an exported program demands, or that the model was compiled for. Calls
        pad to it by themselves.

    Raises
    ------
    LayerError
        When a layer cannot be found or read.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    >>> with ActivationRecorder(model, ("logits",), torch.rand(2, 3, 2, 2)) as recorder:
    ...     recorder(torch.rand(7, 3, 2, 2))["logits"].shape
    torch.Size([7, 5])
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[str], example: Tensor, outputs: str = "auto"
    ) -> None:
        wanted = tuple(dict.fromkeys([layers] if isinstance(layers, str) else layers))
        if not wanted:
            raise LayerError('no layers were asked for; the default is ("logits", "features")')
        self._module = unwrapped(module)
        if any(map(nn.parameter.is_lazy, (*module.parameters(), *module.buffers()))):
            raise LayerError(
                f"{type(self._module).__name__} has lazy parameters without a shape; run it on one "
                "batch first: a probe leaves a model as it was"
            )
        with preserved(self._module), eager(self._module):
            self._reader = _reader_of(
                self._module, wanted, example[:_EXAMPLES], _declared(self._module, outputs)
            )
        of = "features" if self._reader.headless else "logits"
        if of in wanted:
            at = wanted.index(of) + 1
            wanted = (*wanted[:at], *self._reader.more_outputs, *wanted[at:])
        if self._reader.headless and "logits" in wanted:
            if "features" not in wanted:
                raise LayerError(
                    f"{type(self._module).__name__} has no layer that makes logits, its output is "
                    'a backbone\'s: ask for layers=("features",)'
                )
            wanted = tuple(layer for layer in wanted if layer != "logits")
        wanted = tuple(layer for layer in wanted if layer not in self._reader.left_out)
        if not wanted:
            raise LayerError(f"{type(self._module).__name__}: {'; '.join(self._reader.notes)}")
        assumed = (_NO_HEAD,) if self._reader.headless and "features" in wanted else ()
        self.layers = wanted
        self.notes = (*assumed, *self._reader.notes)
        self.batch_size = self._reader.batch_size
        self._active: contextlib.ExitStack | None = None

    def __enter__(self) -> ActivationRecorder:
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserved(self._module))
            stack.enter_context(eager(self._module))
            if isinstance(self._reader, _HookReader):
                stack.enter_context(self._reader)
            self._active = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._active is not None
        stack, self._active = self._active, None
        stack.close()

    @property
    def module(self) -> nn.Module:
        """The model, without wrappers."""
        return self._module

    @property
    def hookable(self) -> bool:
        """Whether layers are read by hooks, as those of an exported program are not."""
        return isinstance(self._reader, _HookReader)

    @property
    def head(self) -> tuple[Tap, ...]:
        """Inputs of the modules that make the logits; empty for a backbone."""
        return self._reader.head if isinstance(self._reader, _HookReader) else ()

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Names of the modules that make the logits; empty for a backbone, or if there is none."""
        return tuple(tap.module for tap in self.head if tap.of_input)

    def main_output(self, output: Any) -> Tensor:
        """Return the one of a model's outputs that its logits are, or a backbone's features."""
        if isinstance(self._reader, _HookReader):
            return self._reader.main(output)
        return main_tensor(output)[0]

    def weights(self) -> str:
        """Return the identity of the weights below the head; of all for exported programs."""
        return weights_identity(self._module, self.head_modules)

    @property
    def tapped(self) -> frozenset[str]:
        """Names of the modules whose inputs or outputs are read."""
        return self._reader.tapped if isinstance(self._reader, _HookReader) else frozenset()

    def copied(self) -> ActivationRecorder | None:
        """Return a recorder of the same layers on a copy of the model, or None without hooks.

        Raises
        ------
        Exception
            Whatever the model raises when it is copied.
        """
        if not isinstance(self._reader, _HookReader):
            return None
        twin = copy.copy(self)
        twin._active = None
        twin._reader = self._reader.copied()
        twin._module = twin._reader.module
        return twin

    def compile(self, batch_size: int) -> None:
        """Have the model compiled on its next call, for batches of one size.

        For a recorder's copy: a compiled model may not change any more.

        Raises
        ------
        LayerError
            For an exported program.
        """
        if not isinstance(self._reader, _HookReader):
            raise LayerError("an exported program cannot be compiled: it has no Python code")
        self._reader.compile(batch_size)
        self.batch_size = batch_size

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Run one forward pass.

        Parameters
        ----------
        x : Tensor
            Preprocessed batch [B, C, H, W] on the model's device.

        Returns
        -------
        dict of str to Tensor
            Per layer [B, units], on the device, in the precision in which the model computed it.
        """
        if self._active is None:
            raise RuntimeError("enter the ActivationRecorder with a with statement first")
        read = self._reader.read(x)
        return {layer: read[layer] for layer in self.layers}


def extract_features(model: nn.Module, x: Tensor) -> Tensor:
    """Return what the probe calls features: the input of the layer that makes the logits.

    Parameters
    ----------
    model : torch.nn.Module
        Comes back as it was: mode, buffers, hooks and gradients' flags.
    x : Tensor
        Preprocessed batch [B, C, H, W] on the model's device.

    Returns
    -------
    Tensor
        Shape [B, units], without gradient: channel means of a map, token means of a sequence.

    Raises
    ------
    LayerError
        When the features cannot be found, or not be read as units.
    ModelSpecError, ModelError
        When `model` is no module that takes pictures, or raises.
    """
    model = check_module(model)
    with (
        explained(model, x, "finding and reading its features"),
        ActivationRecorder(model, ("features",), x) as recorder,
    ):
        return recorder(x)["features"]


def _declared(module: nn.Module, outputs: str) -> str:
    """Return what the argument, else the model itself says that it returns."""
    own = getattr(module, "outputs", None)
    return own if outputs == "auto" and own in ("logits", "features") else outputs


def _reader_of(
    module: nn.Module, layers: tuple[str, ...], example: Tensor, outputs: str
) -> _Reader:
    if isinstance(module, torch.jit.ScriptModule):
        return _ScriptReader(module, layers, example)
    if is_exported(module):
        return ExportedReader(module, layers, example)  # type: ignore[arg-type]
    return _HookReader(module, layers, example, outputs)


class _ScriptReader:
    """TorchScript has no Python hooks: only what the model returns can be read."""

    batch_size = None
    more_outputs: tuple[str, ...] = ()

    def __init__(self, module: nn.Module, layers: tuple[str, ...], example: Tensor) -> None:
        self._module = module
        output, self.headless = main_tensor(module(example))
        self._channels_last = output.ndim == 4 and bool(looks_channels_last(output.shape))
        readable = ("features", "logits") if self.headless else ("logits",)
        hidden = [layer for layer in layers if layer not in readable]
        if hidden and (len(hidden) == len(layers) or hidden != ["features"]):
            raise LayerError(
                f"layer {hidden[0]!r} of a TorchScript module cannot be read: ask for "
                f"layers={readable[:1]!r}, or give the model from which it was made"
            )
        self.left_out = tuple(hidden)
        self.notes = tuple(
            f"{layer} are not probed: a TorchScript module shows what it returns and no more; give "
            "the model from which it was made"
            for layer in hidden
        )

    def read(self, x: Tensor) -> dict[str, Tensor]:
        units = as_units(main_tensor(self._module(x))[0], channels_last=self._channels_last)
        return {"logits": units, "features": units}


class _HookReader(contextlib.AbstractContextManager["_HookReader"]):
    """Takes activations with forward hooks, which stay while it is entered."""

    batch_size: int | None = None

    def __init__(
        self, module: nn.Module, layers: tuple[str, ...], example: Tensor, outputs: str
    ) -> None:
        self.module = module
        self._run: Callable[[Tensor], Any] = module
        self._main_name: str | None = None
        trace = trace_calls(module, example)
        output, is_backbone = main_tensor(trace.output)
        is_backbone = outputs == "features" or (is_backbone and outputs != "logits")
        notes: list[str | None] = []
        self._taps: dict[str, tuple[Tap, ...]] = {}
        self._vectors = {} if is_backbone else vector_outputs(trace.output)
        head = None if is_backbone else self._find_head(example, trace, output)
        self.headless = head is None and outputs != "logits"
        missing = head is None and not self.headless
        self.left_out: tuple[str, ...] = ("features",) if missing else ()
        kind = "features" if self.headless else "logits"
        rest = [name for name in self._vectors if name != self._main_name]
        self._more = {f"{kind}[{name}]": name for name in rest}
        self.head = () if head is None else head.taps
        self._side_by_side = head is not None and head.side_by_side
        self._output = Tap("")
        if head is None:
            channels_last, note = map_convention(module, "", output.shape, trace)
            self._output = Tap("", channels_last=channels_last)
            notes.append(note)
        for layer in layers:
            if layer in self.left_out:
                notes.append(_NO_FEATURES)
            elif layer == "features":
                if head is not None:
                    self._taps[layer] = head.taps
                    notes.append(head.note)
            elif layer != "logits":
                tap, note = named_layer(module, layer, trace)
                self._taps[layer] = (tap,)
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
                lambda x: self.main(self.module(x)).float(),
            )
            if head is not None:
                break
        else:
            self._main_name = names[0] if names else None
        return head

    def main(self, output: Any) -> Tensor:
        """Return the output that the logits, or a backbone's features, are."""
        if self._main_name is None:
            return main_tensor(output)[0]
        return vector_outputs(output)[self._main_name]

    @property
    def more_outputs(self) -> tuple[str, ...]:
        return tuple(self._more)

    @property
    def tapped(self) -> frozenset[str]:
        return frozenset(tap.module for group in self._taps.values() for tap in group)

    def copied(self) -> _HookReader:
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
        on_gpu = any(p.is_cuda for p in self.module.parameters())
        options: dict[str, Any] = {"options": {"freezing": True}}  # weights laid out for the CPU
        if on_gpu:
            options = {"mode": "reduce-overhead"}  # CUDA graphs
        self._run = torch.compile(self.module, dynamic=False, **options)
        self.batch_size = batch_size

    def __enter__(self) -> _HookReader:
        try:
            for name, of_input in {(t.module, t.of_input) for g in self._taps.values() for t in g}:
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
        taps = [
            tap
            for group in self._taps.values()
            for tap in group
            if (tap.module, tap.of_input) == (name, of_input)
        ]

        def keep(_module: nn.Module, args: Any, rest: Any) -> None:
            # `rest` holds a pre-hook's keyword arguments, or a forward hook's output.
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
        self._counts.clear()
        self._kept.clear()
        try:
            output = self._run(self._filled(x))
            units = self._output.read(self.main(output))
            result = {"logits": units, "features": units}
            if self._more:
                vectors = vector_outputs(output)
                result |= {layer: vectors[name].clone() for layer, name in self._more.items()}
            for layer, taps in self._taps.items():
                missing = [tap for tap in taps if tap not in self._kept]
                if missing:
                    raise LayerError(
                        f"layer {layer!r} ran when the layers were found and did not run on a "
                        f"batch of shape {[*x.shape]}"
                    )
                parts = [self._units(tap, len(x)) for tap in taps]
                alike = layer != "features" or not self._side_by_side
                result[layer] = combined(parts) if alike else torch.cat(parts, dim=1)
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
