"""Logits and features of programs that torch.export made: read from the graph, not with hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn

from pytest_watermark_guard.errors import LayerError, PreprocessingError
from pytest_watermark_guard.models.reading.combining import note_on_parts
from pytest_watermark_guard.models.reading.layers import unknown_layer
from pytest_watermark_guard.models.reading.outputs import (
    NO_FEATURES,
    as_units,
    combined,
    further_outputs,
    looks_channels_last,
    main_tensor,
    vector_outputs,
)

# Operator name to the argument that holds the features; the next one holds the weights.
_PROJECTIONS = {
    "linear": 0, "mm": 0, "matmul": 0, "addmm": 1,
    "conv2d": 0, "convolution": 0,
}  # fmt: skip
_POOLING = ("mean", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "avg_pool2d")
_PASSED = (
    *_POOLING, "softmax", "_softmax", "log_softmax", "_log_softmax", "sigmoid", "flatten", "view",
    "_unsafe_view", "reshape", "squeeze", "dropout", "clone", "contiguous", "add", "mul", "div",
    "select", "slice", "stack", "permute", "_to_copy", "to", "alias", "detach",
)  # fmt: skip
# After pooling these belong to a classifier made of convolutions, as SqueezeNet's; else they mark
# a hidden layer.
_PASSED_BEFORE_POOLING = ("relu", "relu_")


def is_exported(module: nn.Module) -> bool:
    """Tell whether a module is a flat graph of operators, without submodules that run."""
    return (
        isinstance(module, fx.GraphModule)
        and not any(
            node.op == "call_module" and node.target != "_guards_fn" for node in module.graph.nodes
        )
        and any(node.op == "get_attr" for node in module.graph.nodes)
    )


def _input_shape(module: fx.GraphModule) -> list[int | None] | None:
    """Return the input's sides; None stands for one that may vary."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    value = placeholders[0].meta.get("val") if placeholders else None
    if not isinstance(value, Tensor):
        return None
    return [side if isinstance(side, int) else None for side in value.shape]


def input_size(module: fx.GraphModule) -> tuple[int, int] | None:
    """Return the height and width that an exported program demands, or None."""
    shape = _input_shape(module)
    if shape is None or len(shape) != 4 or shape[2] is None or shape[3] is None:
        return None
    return shape[2], shape[3]


class ExportedReader:
    """Runs an exported program and keeps the values of some nodes.

    Parameters
    ----------
    module : torch.fx.GraphModule
        As ``ExportedProgram.module()`` gives it; never changed.
    layers : sequence of str
        ``"logits"``, ``"features"`` or names of the modules from which it was exported.
    example : Tensor
        Input batch.
    outputs : {"auto", "logits", "features"}
        What it returns.
    """

    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __init__(
        self, module: fx.GraphModule, layers: Sequence[str], example: Tensor, outputs: str
    ) -> None:
        self._module = module
        self._shape = _input_shape(module)
        self.batch_size = self._shape[0] if self._shape else None
        returned = self._run(example, ())[0]
        output, is_backbone = main_tensor(returned)
        is_backbone = outputs == "features" or (is_backbone and outputs != "logits")
        by_weights = {} if is_backbone else _heads(module)
        heads = tuple(by_weights.values())
        self.headless = not heads and outputs != "logits"
        if not heads and not self.headless:
            self.left_out, self.notes = ("features",), (NO_FEATURES,)
        self._more = further_outputs(returned, output, "features" if self.headless else "logits")
        self.more_outputs = tuple(self._more)
        self._output_channels_last = output.ndim == 4 and bool(looks_channels_last(output.shape))
        self._nodes: dict[str, tuple[tuple[fx.Node, ...], ...]] = {}  # groups, see `_heads`
        for layer in layers:
            if layer == "features":
                self._nodes[layer] = heads
            elif layer != "logits":
                self._nodes[layer] = ((_module_output(module, layer),),)
        if len(heads) > 1 and "features" in layers:
            self.notes = (self._note_on(by_weights, example),)

    def read(self, x: Tensor) -> dict[str, Tensor]:
        """Return the logits or the backbone's output, and each layer, as units."""
        size = self.batch_size or len(x)
        parts = [self._read_one(part, size) for part in torch.split(x, size)]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}

    def _read_one(self, x: Tensor, size: int) -> dict[str, Tensor]:
        nodes = tuple(chain.from_iterable(chain.from_iterable(self._nodes.values())))
        output, values = self._run(x, nodes)
        logits = as_units(main_tensor(output)[0], channels_last=self._output_channels_last)
        vectors = vector_outputs(output)
        result = {"logits": logits, **{key: vectors[name] for key, name in self._more.items()}}
        for layer, groups in self._nodes.items():
            read = [
                combined([_node_units(layer, values[node]) for node in group]) for group in groups
            ]
            result[layer] = torch.cat(read, dim=1) if read else logits
        return {layer: units[: len(x)] for layer, units in result.items()}

    def _note_on(self, heads: Mapping[str, tuple[fx.Node, ...]], example: Tensor) -> str:
        _, values = self._run(example, tuple(chain.from_iterable(heads.values())))
        units = {node: _node_units("features", value).shape[1] for node, value in values.items()}
        return note_on_parts(
            (_layer_of(weights), len(group), units[group[0]]) for weights, group in heads.items()
        )

    def _run(self, x: Tensor, nodes: tuple[fx.Node, ...]) -> tuple[Any, dict[fx.Node, Any]]:
        self._check(x)
        missing = (self.batch_size or len(x)) - len(x)
        if missing > 0:
            x = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
        elif missing < 0:
            x = x[: self.batch_size]
        interpreter = _Interpreter(self._module, nodes)
        return interpreter.run(x), interpreter.kept

    def _check(self, x: Tensor) -> None:
        """Refuse a wrong size in few words; torch's own message is a page long."""
        wanted = self._shape or [None] * x.ndim
        if len(wanted) != x.ndim or any(
            want not in (None, have) for want, have in zip(wanted[1:], x.shape[1:], strict=True)
        ):
            sides = ", ".join("any" if side is None else str(side) for side in wanted)
            raise PreprocessingError(
                f"the exported program takes batches of shape [{sides}], not {[*x.shape]}: "
                "preprocess to that size, or export it with dynamic shapes"
            )


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, nodes: tuple[fx.Node, ...]) -> None:
        super().__init__(module)
        self._wanted = frozenset(nodes)
        self.kept: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            # A clone: operators such as relu_ may overwrite the value.
            self.kept[n] = value.clone() if isinstance(value, Tensor) else value
        return value


def _operator(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.partition("::")[2] if node.op == "call_function" and schema else ""


def _heads(module: fx.GraphModule) -> dict[str, tuple[fx.Node, ...]]:
    """Return the inputs of the projections that make the logits, by weights; none for a backbone.

    Those that one set of weights projects are averaged, as mirrored views are; those of several
    are side by side, as are an ensemble's.
    """
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.ndim == 2:
            projections = list(_projections(node, pooled=False))
            if None in projections:
                return {}
            groups: dict[str, list[fx.Node]] = {}
            for source, weights in dict.fromkeys(pair for pair in projections if pair is not None):
                if not any(source in group for group in groups.values()):
                    groups.setdefault(weights, []).append(source)
            return {weights: tuple(group) for weights, group in groups.items()}
    return {}


def _projections(node: fx.Node, pooled: bool) -> Iterator[tuple[fx.Node, str] | None]:
    """Walk from the logits back to the projections; gives their inputs, None for a path without."""
    name = _operator(node)
    if name in _PROJECTIONS:
        at = _PROJECTIONS[name]
        source, weights = node.args[at : at + 2]
        if isinstance(source, fx.Node) and isinstance(weights, fx.Node):
            yield source, _parameter(weights)
        else:
            yield None
    elif name in _PASSED or (pooled and name in _PASSED_BEFORE_POOLING):
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                yield from _projections(source, pooled or name in _POOLING)
    else:
        yield None


def _parameter(weights: fx.Node) -> str:
    """Return the name of a parameter, which may be transposed before it is used."""
    while weights.op == "call_function" and weights.all_input_nodes:
        weights = weights.all_input_nodes[0]
    return str(weights.target)


def _layer_of(weights: str) -> str:
    return weights.partition(".parametrizations.")[0].removesuffix(".weight")


def _module_output(module: fx.GraphModule, layer: str) -> fx.Node:
    """Return the last node that was traced inside the module called ``layer``."""
    paths: dict[str, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            for path, _ in (node.meta.get("nn_module_stack") or {}).values():
                paths[path] = node
    paths.pop("", None)
    if layer not in paths:
        raise unknown_layer(layer, list(paths), "the exported program")
    return paths[layer]


def _node_units(layer: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise LayerError(f"layer {layer!r} of the exported program is not a tensor")
    channels_last = value.ndim == 4 and bool(looks_channels_last(value.shape))
    return as_units(value, channels_last=channels_last)
