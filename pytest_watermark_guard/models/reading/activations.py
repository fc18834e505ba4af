"""Recording layers' activations as units, in one forward pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.adapters.adapter import AdaptedModel, called
from pytest_watermark_guard.models.adapters.onnx_model import OnnxModel
from pytest_watermark_guard.models.identity import weights_identity
from pytest_watermark_guard.models.near_misses import check_module
from pytest_watermark_guard.models.reading.exported import ExportedReader, is_exported
from pytest_watermark_guard.models.reading.foreign import explained
from pytest_watermark_guard.models.reading.hooked import HookReader
from pytest_watermark_guard.models.reading.layers import Tap
from pytest_watermark_guard.models.reading.onnx_file import OnnxReader
from pytest_watermark_guard.models.reading.opaque import OpaqueReader, is_opaque
from pytest_watermark_guard.models.reading.outputs import (
    main_tensor,
)
from pytest_watermark_guard.models.state import eager, preserved, unwrapped

_NO_HEAD = "no head found: the model's output is probed as its features, and there are no logits"
_EXAMPLES = 4
_TOWER = ("input_resolution", "output_dim")  # what towers of OpenAI's CLIP say of themselves
_ALIKE = 0.999


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
        The batch size that an exported model demands, or that the model was compiled for. Calls
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
        example = example[:_EXAMPLES]
        said = "features" in (outputs, getattr(self._module, "outputs", None))
        with preserved(self._module), eager(self._module):
            outputs = _declared(self._module, outputs, example)
            self._reader = _reader_of(self._module, wanted, example, outputs)
        of = "features" if self._reader.headless else "logits"
        if of in wanted:
            at = wanted.index(of) + 1
            wanted = (*wanted[:at], *self._reader.more_outputs, *wanted[at:])
        if self._reader.headless and "logits" in wanted:
            if "features" not in wanted:
                raise LayerError(
                    f"{called(self._module)} has no layer that makes logits, its output is "
                    'a backbone\'s: ask for layers=("features",)'
                )
            wanted = tuple(layer for layer in wanted if layer != "logits")
        wanted = tuple(layer for layer in wanted if layer not in self._reader.left_out)
        if not wanted:
            raise LayerError(f"{called(self._module)}: {'; '.join(self._reader.notes)}")
        assumed = self._reader.headless and "features" in wanted and not said
        self.layers = wanted
        self.notes = (*([_NO_HEAD] * assumed), *self._reader.notes)
        self.batch_size = self._reader.batch_size
        self._active: contextlib.ExitStack | None = None
        self._widths: dict[str, int] = {}  # number of units, once seen

    def __enter__(self) -> ActivationRecorder:
        with contextlib.ExitStack() as stack:
            stack.enter_context(preserved(self._module))
            stack.enter_context(eager(self._module))
            if isinstance(self._reader, HookReader):
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
    def entered(self) -> bool:
        """Whether it reads layers now."""
        return self._active is not None

    @property
    def module(self) -> nn.Module:
        """The model, without wrappers."""
        return self._module

    @property
    def hookable(self) -> bool:
        """Whether layers are read by hooks, as those of an exported program are not."""
        return isinstance(self._reader, HookReader)

    @property
    def head(self) -> tuple[Tap, ...]:
        """Inputs of the modules that make the logits; empty for a backbone."""
        return self._reader.head if isinstance(self._reader, HookReader) else ()

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Names of the modules that make the logits; empty for a backbone, or if there is none."""
        return tuple(tap.module for tap in self.head if tap.of_input)

    def main_output(self, output: Any, images: int) -> Tensor:
        """Return the one of a model's outputs that its logits are, or a backbone's features."""
        if isinstance(self._reader, HookReader):
            return self._reader.main(output, images)
        return main_tensor(output, images)[0]

    def weights(self) -> str:
        """Return the identity of the weights below the head; of all for exported models."""
        if isinstance(self._module, AdaptedModel):
            return self._module.identity
        return weights_identity(self._module, self.head_modules)

    @property
    def tapped(self) -> frozenset[str]:
        """Names of the modules whose inputs or outputs are read."""
        return self._reader.tapped if isinstance(self._reader, HookReader) else frozenset()

    def copied(self) -> ActivationRecorder | None:
        """Return a recorder of the same layers on a copy of the model, or None without hooks.

        Raises
        ------
        Exception
            Whatever the model raises when it is copied.
        """
        if not isinstance(self._reader, HookReader):
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
        if not isinstance(self._reader, HookReader):
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
        for layer in self.layers:
            rows, width = len(read[layer]), self._widths.setdefault(layer, read[layer].shape[1])
            if not width or (rows, width) != (len(x), read[layer].shape[1]):
                raise LayerError(
                    f"layer {layer!r} gave {[*read[layer].shape]} for {len(x)} images, where "
                    f"[{len(x)}, {width or 'C'}] was expected: every call must give as many units, "
                    "and a row for every image"
                )
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


def _declared(module: nn.Module, outputs: str, example: Tensor) -> str:
    """Return what the argument, else the model itself says that it returns."""
    own = getattr(module, "outputs", None)
    if outputs != "auto":
        return outputs
    if own in ("logits", "features"):
        return str(own)
    return "features" if _embeds(module, example) else "auto"


def _embeds(module: nn.Module, example: Tensor) -> bool:
    """Tell whether a model is a picture tower of CLIP's kind, or returns what such one returns."""
    if type(module).__module__.startswith("open_clip."):
        return True
    if all(isinstance(getattr(module, name, None), int) for name in _TOWER):
        return True
    encode = getattr(module, "encode_image", None)
    if not callable(encode):
        return False
    output = main_tensor(module(example), len(example))[0].float()
    try:
        embedded = encode(example)
    except Exception:  # not every method of this name takes pictures alone
        return False
    if not isinstance(embedded, Tensor) or embedded.shape != output.shape or output.ndim != 2:
        return False
    # Some normalise what they return.
    alike = functional.cosine_similarity(output, embedded.float())
    return bool((alike > _ALIKE).all())


def _reader_of(
    module: nn.Module, layers: tuple[str, ...], example: Tensor, outputs: str
) -> _Reader:
    if isinstance(module, OnnxModel):
        return OnnxReader(module, layers, example, outputs)
    if is_exported(module):
        return ExportedReader(module, layers, example, outputs)  # type: ignore[arg-type]
    if is_opaque(module):
        return OpaqueReader(module, layers, example, outputs)
    return HookReader(module, layers, example, outputs)
