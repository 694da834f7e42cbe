"""A graph of ONNX that is written like an expression of NumPy: values have NumPy's operators and methods.

Parameters enter a graph under their canonical names, shapes and axis order; what a runtime wants otherwise, such as a
transposed matrix, is computed from them by nodes, which runtimes evaluate once, when they load the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from clip_core.naming import Weights
from clip_core.parameters import Shape

OLDEST_OPSET = 17  # which has layer normalisation
NEWEST_OPSET = 22
DEFAULT_OPSET = 17

Axes = Sequence[int | str]  # numbers, and names of those that may have any length
Stored = Callable[[str, np.ndarray], TensorProto]  # a parameter as a tensor of the file


class Value:
    """What a node gives, an input or a parameter: operators and methods add the node that computes them."""

    def __init__(self, graph: Graph, name: str, shape: Shape = ()) -> None:
        self.graph, self.name = graph, name
        self.shape = shape  # of a parameter; others do not know theirs

    def __add__(self, other: Value | float) -> Value:
        return self.graph.node("Add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self.graph.node("Sub", self, other)

    def __mul__(self, other: Value | float) -> Value:
        return self.graph.node("Mul", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.graph.node("Div", self, other)

    def __matmul__(self, other: Value) -> Value:
        return self.graph.node("MatMul", self, other)

    @property
    def T(self) -> Value:
        """A matrix [i, o] as [o, i]."""
        return self.transpose(1, 0)

    def transpose(self, *axes: int) -> Value:
        return self.graph.node("Transpose", self, perm=axes)

    def reshape(self, *lengths: int) -> Value:
        """In other axes: 0 keeps the length of the axis in the same place, and -1 is what is left."""
        return self.graph.node("Reshape", self, self.graph.integers(*lengths))

    def sum(self, axis: int, keepdims: bool = False) -> Value:
        return self.graph.node("ReduceSum", self, self.graph.integers(axis), keepdims=int(keepdims))

    def max(self) -> Value:
        """The largest of all, a scalar."""
        return self.graph.node("ReduceMax", self, keepdims=0)

    def astype(self, dtype: type[np.generic]) -> Value:
        return self.graph.node("Cast", self, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def expand(self, axis: int) -> Value:
        """With an axis of length 1 at this place."""
        return self.graph.node("Unsqueeze", self, self.graph.integers(axis))

    def length(self, axis: int) -> Value:
        """How long an axis is, int64 [1]."""
        return self.graph.node("Shape", self, start=axis, end=axis + 1)

    def at(self, index: int, axis: int) -> Value:
        """At one place of an axis, without this axis."""
        return self.graph.node("Gather", self, self.graph.constant(np.int64(index)), axis=axis)

    def until(self, end: Value | int, axis: int) -> Value:
        """The part of an axis before ``end``, a number or int64 [1]."""
        graph = self.graph
        end = graph.integers(end) if isinstance(end, int) else end
        return graph.node("Slice", self, graph.integers(0), end, graph.integers(axis))

    def split(self, *lengths: int, axis: int) -> Sequence[Value]:
        """Parts of these lengths along one axis."""
        return self.graph.nodes("Split", [self, self.graph.integers(*lengths)], len(lengths), axis=axis)


class Graph:
    """Nodes, the parameters that they use, inputs and outputs.

    Args:
        weights: canonical name -> array, all of the model's; a graph stores those that it uses.
        dtype: float32, or float16, in which the towers then compute; inputs and outputs are float32 in both.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], dtype: type[np.floating] = np.float32) -> None:
        self.dtype = dtype
        self.weights: Weights = {}
        self._offered = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, Shape, bytes], TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, str] = {}  # of outputs, by those that their nodes have given them

    def parameters(self) -> dict[str, Value]:
        """The parameters by their canonical names."""
        return {name: Value(self, name, array.shape) for name, array in self._offered.items()}

    def input(self, name: str, dtype: type[np.generic], axes: Axes) -> Value:
        """An input of the whole graph."""
        self._inputs.append(_described(name, dtype, axes))
        return Value(self, name)

    def output(self, name: str, value: Value, axes: Axes | None = None) -> None:
        """Make a value, float32, an output of the whole graph; without ``axes`` its shape is left open."""
        self._names[value.name] = name
        self._outputs.append(_described(name, np.float32, axes))

    def constant(self, number: Any) -> Value:
        """A scalar or an array; a Python number gets the graph's own dtype."""
        array = np.asarray(number, self.dtype if isinstance(number, float | int) else None)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = onnx.numpy_helper.from_array(array, f"constant_{len(self._constants)}")
        return Value(self, self._constants[key].name, array.shape)

    def integers(self, *numbers: int) -> Value:
        """A row of whole numbers, as shapes and axes are given."""
        return self.constant(np.array(numbers, np.int64))

    def node(self, kind: str, *inputs: Value | float, **attributes: Any) -> Value:
        """Add a node with one output; a number among the inputs is a `constant`."""
        values = [value if isinstance(value, Value) else self.constant(value) for value in inputs]
        (output,) = self.nodes(kind, values, 1, **attributes)
        return output

    def nodes(self, kind: str, inputs: Sequence[Value], outputs: int, **attributes: Any) -> Sequence[Value]:
        """Add a node with several outputs."""
        for value in inputs:
            if value.name in self._offered and value.name not in self.weights:
                self._use(value.name)
        label = f"{kind}_{len(self._nodes)}"
        names = [label] if outputs == 1 else [f"{label}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, [value.name for value in inputs], names, label, **attributes))
        return [Value(self, each) for each in names]

    def _use(self, name: str) -> None:
        # The scale and the bias of the logits are applied in float32 whatever the towers compute in.
        dtype = np.float32 if name in ("logit_scale", "logit_bias") else self.dtype
        with np.errstate(over="ignore"):  # what becomes infinite is refused by whoever has the graph written
            self.weights[name] = np.asarray(self._offered[name], dtype, order="C")

    def model(self, name: str, opset: int, metadata: Mapping[str, str], stored: Stored) -> onnx.ModelProto:
        """The graph as a file has it.

        Args:
            name: of the graph.
            metadata: its properties.
            stored: what stands in the file for a parameter.
        """
        parameters = [stored(each, array) for each, array in self.weights.items()]
        constants = list(self._constants.values())
        nodes = [self._renamed(node) for node in self._nodes]
        graph = helper.make_graph(nodes, name, self._inputs, self._outputs, [*parameters, *constants])
        versions = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=versions, producer_name="triclip")
        model.ir_version = helper.find_min_ir_version_for(versions)
        helper.set_model_props(model, dict(metadata))
        return model

    def _renamed(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node with the names of outputs of the graph where it gives or takes them."""
        result = onnx.NodeProto()
        result.CopyFrom(node)
        for names in (result.input, result.output):
            names[:] = [self._names.get(name, name) for name in names]
        return result


def inside(name: str, array: np.ndarray) -> TensorProto:
    """A parameter whose bytes are a part of the file."""
    return onnx.numpy_helper.from_array(array, name)


def outside(name: str, array: np.ndarray, location: str, offset: int = 0) -> TensorProto:
    """A parameter whose bytes are in another file, ``location`` beside this one."""
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _described(name: str, dtype: type[np.generic], axes: Axes | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), axes)
