"""Logits, features and named values of ONNX files: read as further outputs, not with hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pytest_watermark_guard.errors import LayerError
from pytest_watermark_guard.models.adapters.onnx_graph import OnnxGraph
from pytest_watermark_guard.models.adapters.onnx_model import OnnxModel, run_in_batches
from pytest_watermark_guard.models.reading.bottleneck import (
    Candidate,
    Change,
    are_shares,
    find_bottleneck,
    logarithms,
)
from pytest_watermark_guard.models.reading.layers import Tap, unknown_layer
from pytest_watermark_guard.models.reading.outputs import (
    describe,
    further_outputs,
    looks_channels_last,
    main_tensor,
    vector_outputs,
)

_ALIKE = 1e-3  # of the largest number: what one image gets, alone and among others
_ROUNDED = 5e-2  # the same, of values that are rounded to half precision or fewer bits

_PERHAPS_ENCODER = (
    ", and then through a pooled 1x1 convolution, which may be an encoder's last layer as well: if "
    'so, say outputs="features"'
)


class OnnxReader:
    """Runs an ONNX file and keeps some of its graph's values.

    Parameters
    ----------
    model : OnnxModel
    layers : tuple of str
        ``"logits"``, ``"features"`` or names of the graph's values.
    example : Tensor
        Input batch.
    outputs : {"auto", "logits", "features"}
        What the file returns.
    """

    def __init__(
        self, model: OnnxModel, layers: tuple[str, ...], example: Tensor, outputs: str
    ) -> None:
        self._model = model
        self._graph = model.graph()
        notes = []
        self.batch_size, note = _batch_size(model, example)
        notes.append(note)
        returned = self._returned(model.run(example, (), self.batch_size))
        output, is_backbone = main_tensor(returned, len(example))
        is_backbone = outputs == "features" or (is_backbone and outputs != "logits")
        self._main: str | None = None
        features, doubt = None, ""
        if not is_backbone:
            features, doubt = self._features(returned, output, example)
        self.headless = is_backbone or (
            features is None and outputs != "logits" and not self._is_projected()
        )
        self.left_out: tuple[str, ...] = ()
        if features is None and not self.headless:
            self.left_out = ("features",)
        output = self._main_of(returned, len(example))
        self._output, note = _tap("", output, "its output")
        notes.append(note)
        self._more = further_outputs(returned, output, "features" if self.headless else "logits")
        self.more_outputs = tuple(self._more)
        self._taps: dict[str, Tap] = {}
        for layer in layers:
            if layer == "features":
                notes.append(self._note_on_features(features) + doubt)
                if features is not None:
                    self._taps[layer] = features
            elif layer != "logits":
                self._taps[layer], note = self._named(layer, example)
                notes.append(note)
        self.notes = tuple(note for note in notes if note)

    def _returned(self, values: dict[str, Any]) -> Any:
        """Return the outputs as the model's ``forward`` does, without values that were added."""
        names = self._graph.outputs
        return values[names[0]] if len(names) == 1 else {name: values[name] for name in names}

    def _is_projected(self) -> bool:
        return self._graph.is_projected(self._main or self._graph.outputs[0])

    def _main_of(self, returned: Any, images: int) -> Tensor:
        if self._main is None:
            return main_tensor(returned, images)[0]
        return vector_outputs(returned, images)[self._main]

    def _note_on_features(self, features: Tap | None) -> str:
        if features is not None:
            return (
                f"features: found by trying to be {features.module!r}: on it alone the output of "
                f"{self._model.called} depends"
            )
        if self.headless:
            return ""
        return (
            f"features are not probed: {self._model.called} has no value on which alone its "
            "output depends; name a value of its graph"
        )

    def _features(self, returned: Any, output: Tensor, example: Tensor) -> tuple[Tap | None, str]:
        """Find what an output is made of, and which of several outputs are the logits.

        With the tap comes what speaks against it.
        """
        vectors = vector_outputs(returned, len(example))
        names = sorted(vectors, key=lambda name: vectors[name] is not output)
        self._main = names[0] if names else None
        for name in names:
            value = name or self._graph.outputs[0]
            if self._graph.is_activated(value):
                continue
            logits = vectors[name].float()
            prepared: Callable[[Tensor], Tensor] = Tensor.float
            if are_shares(logits):
                prepared = logarithms
                logits = logarithms(logits)
            for candidate in self._candidates(value, example, prepared):
                # Of its own: in half precision, a part rounds otherwise than the whole.
                own = candidate.rerun(lambda tensor, _: tensor)
                if not _alike(own, logits, _ROUNDED):
                    continue
                for tap in find_bottleneck([candidate], example, own):
                    self._main = name
                    pooled = tap.module == self._graph.pooled_classifier(value)
                    return tap, _PERHAPS_ENCODER if pooled else ""
        return None, ""

    def _candidates(
        self, output: str, example: Tensor, prepared: Callable[[Tensor], Tensor]
    ) -> Iterator[Candidate]:
        """Give the values through each of which all that an output tells of an image must pass."""
        names = [*islice(self._graph.bottlenecks(output), 1, None)]
        values = self._model.run(example, names, self.batch_size)
        pooled = self._graph.pooled_classifier(output)
        for name in names:
            value = values[name]
            if not _is_of_images(value, len(example)):
                continue
            rerun = _Head(self._model, self._graph, name, value, output, example, self.batch_size)
            yield Candidate(
                Tap(name),
                (-1,),
                [value.float()],
                lambda change, rerun=rerun: prepared(rerun(change)),  # type: ignore[misc]
                lambda name=name: name == pooled,  # type: ignore[misc]
            )

    def _named(self, layer: str, example: Tensor) -> tuple[Tap, str]:
        known = self._graph.values
        if layer not in known:
            raise unknown_layer(layer, known, self._model.called, "the names of its graph's values")
        value = self._model.run(example, (layer,), self.batch_size)[layer]
        if not _is_of_images(value, len(example)):
            what = describe(value) if isinstance(value, Tensor) else type(value).__name__
            raise LayerError(
                f"layer {layer!r} of {self._model.called} is {what}, which cannot be read as units "
                f"of {len(example)} images: choose another of its graph's values"
            )
        return _tap(layer, value, f"layer {layer!r}")

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """Return the logits or the backbone's output, and each layer, as units."""
        names = tuple(tap.module for tap in self._taps.values())
        values = self._model.run(x, names, self.batch_size)
        returned = self._returned(values)
        logits = self._output.read(self._main_of(returned, len(x)))
        vectors = vector_outputs(returned, len(x))
        result = {"logits": logits, "features": logits}
        result |= {layer: vectors[name] for layer, name in self._more.items()}
        for layer, tap in self._taps.items():
            result[layer] = tap.read(_as_floats(values[tap.module]))
        return result


class _Head:
    """The part of a graph from a value to an output, as a model of its own."""

    def __init__(
        self,
        model: OnnxModel,
        graph: OnnxGraph,
        value: str,
        tensor: Tensor,
        output: str,
        example: Tensor,
        batch_size: int | None,
    ) -> None:
        import onnx

        self._tensor, self._name, self._batch_size = tensor, value, batch_size
        element = onnx.helper.np_dtype_to_tensor_dtype(tensor.numpy(force=True).dtype)
        self._session = model.opened(graph.below(value, element, tensor.ndim, output))
        image = model.input.name
        named = {taken.name for taken in self._session.get_inputs()}
        # Shapes may be taken of the image itself.
        self._feed = {image: model.input.feed(example)} if image in named - {value} else {}

    def __call__(self, change: Change) -> Tensor:
        """Return the output for other values."""
        changed = change(self._tensor.float(), 0)
        if not self._tensor.is_floating_point():
            kind = torch.iinfo(self._tensor.dtype)
            changed = changed.round().clamp(kind.min, kind.max)
        array = changed.to(self._tensor.dtype).numpy(force=True)
        feed = {**self._feed, self._name: np.ascontiguousarray(array)}
        (output,) = run_in_batches(self._session, feed, self._batch_size)
        return torch.from_numpy(output).reshape(len(changed), -1)


def _batch_size(model: OnnxModel, example: Tensor) -> tuple[int | None, str]:
    """Return how many images a file takes at a time, and a note where it does not say so itself.

    Many files that declare any batch hold a shape with 1 in it; in others, as with ranges that are
    chosen as they run, the answers to one image depend on those beside it.
    """
    if model.batch_size is not None or len(example) < 2:
        return model.batch_size, ""
    alone = model.run(example, (), 1)
    why = ""
    try:
        together = model.run(example)
    except Exception as error:  # whatever it raises on more than it takes
        why = f"more at once raise {type(error).__name__}"
    else:
        if not all(_alike(alone[name], together[name]) for name in alone):
            why = "its answers to an image depend on what else is in the batch"
    return (1, f"{model.called} is run on one image at a time: {why}") if why else (None, "")


def _alike(one: Any, other: Any, tolerance: float = _ALIKE) -> bool:
    if not isinstance(one, Tensor):
        return type(one) is type(other)
    if one.shape != other.shape:
        return False
    scale = float(one.abs().max()) if one.numel() else 0.0
    return torch.allclose(
        one.double(), other.double(), rtol=0.0, atol=tolerance * scale, equal_nan=True
    )


def _is_of_images(value: Any, images: int) -> bool:
    """Tell whether a value holds numbers of each image; quantised ones count their steps."""
    return (
        isinstance(value, Tensor)
        and value.ndim in (2, 3, 4)
        and len(value) == images
        and (value.is_floating_point() or value.dtype in (torch.uint8, torch.int8))
    )


def _as_floats(value: Tensor) -> Tensor:
    return value if value.is_floating_point() else value.float()


def _tap(name: str, value: Tensor, what: str) -> tuple[Tap, str]:
    """Return how a value is read as units, and a note where that is assumed."""
    if value.ndim != 4:
        return Tap(name), ""
    channels_last = looks_channels_last(value.shape)
    note = f"{what}: its map {[*value.shape]} is assumed to be [B, C, H, W]"
    return Tap(name, channels_last=bool(channels_last)), note if channels_last is None else ""
