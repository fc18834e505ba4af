"""An ONNX file's graph: which values depend on the image, and parts as graphs of their own.

Nothing is run here, and no graph is changed: parts are built anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

# Of a value they tell the shape alone, which is the same for all images.
_OF_SHAPE = ("Shape", "Size")
# Operator to the place of its weights among its inputs.
WEIGHTED = {
    "Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1,
    "Gemm": 1, "QGemm": 3, "FusedGemm": 1,
    "MatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "FusedMatMul": 1,
}  # fmt: skip
_FILTERS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv")
_RECTIFIERS = ("Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Gelu", "HardSwish", "Mish", "Softplus")
_SAME = (
    "Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear", "Flatten", "Reshape",
    "Squeeze",
)  # fmt: skip
_PROBABILITIES = ("Softmax", "LogSoftmax", "Sigmoid")
# What may follow a classifier made of convolutions, as SqueezeNet's: it is applied to each place,
# and its answers are pooled.
_POOLED = (
    *_SAME, *_PROBABILITIES, "Relu", "GlobalAveragePool", "AveragePool", "ReduceMean",
    "QLinearGlobalAveragePool", "QLinearAveragePool",
)  # fmt: skip
# What may follow a classifier: scales, shifts and averages of several.
_LINEAR = ("Add", "Sub", "Mul", "Div", "Sum", "Mean", "BatchNormalization")


class OnnxGraph:
    """Reads a model; its nodes are in the order in which they run, as the format demands.

    Parameters
    ----------
    model : onnx.ModelProto
        Without local functions.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self.inputs = [v for v in graph.input if v.name not in self.constants.keys() | sparse]
        self.outputs = [value.name for value in graph.output]
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._of_image = self._reached()

    @property
    def values(self) -> list[str]:
        """Names of all values that depend on the image, in order."""
        return [name for name in self._producers if name in self._of_image]

    def _reached(self) -> frozenset[str]:
        reached = {value.name for value in self.inputs}
        for node in self._model.graph.node:
            if node.op_type not in _OF_SHAPE and any(s in reached for s in _sources(node)):
                reached.update(node.output)
        return frozenset(reached - {""})

    def bottlenecks(self, output: str) -> Iterator[str]:
        """Give the values through each of which all ways from the image to an output lead.

        From the output, which is the first of them, back to what the last layer with weights takes.
        """
        crossing = {output} & self._of_image
        last = False
        for node in reversed(self._model.graph.node):
            made = crossing.intersection(node.output)
            if not made:
                continue
            if len(crossing) == 1:
                yield from made
                if last:
                    return
            last |= self._is_weighted(node)
            crossing -= made
            crossing.update(s for s in _sources(node) if s in self._of_image)

    def with_outputs(self, names: Sequence[str]) -> bytes:
        """Return the model with further values among its outputs."""
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        copy.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in names if name not in self.outputs
        )
        content: bytes = copy.SerializeToString()
        return content

    def below(self, value: str, element: int, rank: int, output: str) -> bytes:
        """Return a model of the part from a value, which becomes an input, to an output.

        Parameters
        ----------
        value, output : str
        element : int
            The value's type, of ``onnx.TensorProto``.
        rank : int
            Its number of axes, whose lengths are left open.
        """
        import onnx

        wanted, nodes = {output}, []
        for node in reversed(self._model.graph.node):
            made = wanted.intersection(node.output) - {value}
            if made:
                nodes.append(node)
                wanted.update(_sources(node))
        graph = self._model.graph
        head = onnx.ModelProto()
        head.CopyFrom(onnx.ModelProto(ir_version=self._model.ir_version))
        head.opset_import.extend(self._model.opset_import)
        head.graph.name = "head"
        for node in reversed(nodes):
            copy = head.graph.node.add()
            copy.CopyFrom(node)
            # The others of its outputs stay.
            copy.output[:] = ["" if name == value else name for name in copy.output]
        head.graph.initializer.extend(t for t in graph.initializer if t.name in wanted)
        head.graph.sparse_initializer.extend(
            t for t in graph.sparse_initializer if t.values.name in wanted
        )
        head.graph.input.extend(v for v in self.inputs if v.name in wanted and v.name != value)
        shape = [f"{value}:{axis}" for axis in range(rank)]
        head.graph.input.append(onnx.helper.make_tensor_value_info(value, element, shape))
        head.graph.output.extend(v for v in graph.output if v.name == output)
        content: bytes = head.SerializeToString()
        return content

    def first_layer(self) -> tuple[str, int | None] | None:
        """Return what the first layer with weights takes, and how many channels, where it says so.

        None where the image meets no such layer.
        """
        for node in self._model.graph.node:
            if not self._is_weighted(node):
                continue
            value = node.input[0]
            maker = self._producers.get(value)
            if maker is not None and maker.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
                value = maker.input[0]
            filters = self._weight(node.input[WEIGHTED[node.op_type]])
            if node.op_type not in _FILTERS or filters is None:
                return value, None
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            return value, filters.dims[1] * groups
        return None

    def _weight(self, name: str) -> Any:
        """Return the initializer that a weight is made of, or None."""
        maker = self._producers.get(name)
        while maker is not None and maker.op_type in ("DequantizeLinear", "Identity", "Cast"):
            name = maker.input[0]
            maker = self._producers.get(name)
        return self.constants.get(name)

    def _is_weighted(self, node: Any) -> bool:
        """Tell whether a node multiplies values of the image by others, as in no attention."""
        place = WEIGHTED.get(node.op_type)
        return (
            place is not None
            and node.input[0] in self._of_image
            and node.input[place] not in self._of_image
        )

    def is_activated(self, output: str) -> bool:
        """Tell whether an output is that of an activation: a hidden layer, its head cut off."""
        node = self._producers.get(output)
        while node is not None and node.op_type in _SAME:
            node = self._producers.get(node.input[0])
        return node is not None and node.op_type in _RECTIFIERS

    def is_projected(self, output: str) -> bool:
        """Tell whether an output is made by matrices with weights, one or several together."""
        node = self._producers.get(output)
        if node is None:
            return False
        if self._is_weighted(node):
            return node.op_type not in _FILTERS
        if node.op_type not in (*_SAME, *_PROBABILITIES, *_LINEAR):
            return False
        return all(self.is_projected(s) for s in _sources(node) if s in self._of_image)

    def pooled_classifier(self, output: str) -> str | None:
        """Return the input of a 1x1 convolution whose answers are only pooled to make an output."""
        name = output
        while (node := self._producers.get(name)) is not None:
            sources = [source for source in _sources(node) if source in self._of_image]
            if len(sources) != 1:
                return None
            if node.op_type in _FILTERS:
                filters = self._weight(node.input[WEIGHTED[node.op_type]])
                pointwise = filters is not None and all(side == 1 for side in filters.dims[2:])
                return sources[0] if pointwise else None
            if node.op_type not in _POOLED:
                return None
            (name,) = sources
        return None


def _sources(node: Any) -> Iterator[str]:
    """Give the names of values that a node takes, also inside of its branches and loops."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            own = {name for inner in graph.node for name in inner.output}
            own |= {value.name for value in graph.input} | {t.name for t in graph.initializer}
            yield from (name for n in graph.node for name in _sources(n) if name not in own)
            yield from (value.name for value in graph.output if value.name not in own)
