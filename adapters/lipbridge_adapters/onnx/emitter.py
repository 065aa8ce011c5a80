"""Writes the nodes of a Graph as ONNX operators, in a form that :mod:`lipbridge_adapters.onnx.reading` reads back.

Opset 13 has all that is needed. What it has no operator for is written with several: circular padding with Slice and
Concat, sorting with TopK, normalisation with ReduceMean, Sqrt and Div; GELU with Erf or Tanh, SiLU with Sigmoid,
Mish with Softplus and Tanh, and Hardswish with Clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Conv,
    Node,
)
from lipbridge.graph.rules import Rule

OPSET = 13
IR_VERSION = 7


#: The name of the value of a node, given the emitter and the names of its inputs' values. The functions are in
#: :mod:`lipbridge_adapters.onnx.emitted_nodes`.
EMIT = Rule[["Emitter", list[str]], str]("ONNX")


class Emitter:
    """Writes the nodes of one Graph; a value that is needed twice is computed once.

    Attributes:
        rounding: the largest relative change of a weight or constant by float32 so far.
        operations: the operators that were used so far.
    """

    def __init__(self, onnx: Any, graph: Graph, dialect: str, rounding: float = 0.0) -> None:
        self.onnx, self.graph, self.dialect = onnx, graph, dialect
        self.rounding = rounding
        self.operations: set[str] = set()
        self.nodes: list[Any] = []
        self.tensors: dict[tuple[bytes, tuple[int, ...], str], Any] = {}
        self.known: dict[tuple[Any, ...], str] = {}
        self.layer = ""
        self.shapes: list[tuple[int, ...]] = []  # of the inputs of the node at hand

    def model(self) -> bytes:
        """The bytes of the ONNX file.

        Raises:
            UnsupportedOperation: naming the layer that the dialect cannot say.
            NumericalFailure: for weights beyond float32's range.
        """
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        if len(self.graph.nodes) == 1:
            raise UnsupportedOperation("input", "a network without layers")
        last = self.graph.fold("X", self._emitted)
        if last == "X":
            last = self.op("Identity", "X")
        for node in self.nodes:  # the output may have readers, and may stand anywhere if it was needed before
            for names in (node.input, node.output):
                names[:] = ["Y" if name == last else name for name in names]
        ends = [
            helper.make_tensor_value_info(name, float32, [1, *shape])
            for name, shape in (("X", self.graph.input_shape), ("Y", self.graph.output_shape))
        ]
        graph = helper.make_graph(self.nodes, "lipbridge", ends[:1], ends[1:], list(self.tensors.values()))
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lipbridge")
        return model.SerializeToString()

    def _emitted(self, index: int, node: Node, inputs: list[str]) -> str:
        self.layer = node.name
        self.shapes = [self.graph.nodes[i].shape for i in node.inputs]
        if not EMIT.knows(type(node)):
            raise self.unsupported(type(node).__name__)
        return EMIT(node, self, inputs)

    # --- operators and constants ----------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """The name of the output of one operator."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: object) -> list[str]:
        """The names of the outputs of one operator."""
        key = (kind, inputs, tuple(sorted((name, repr(value)) for name, value in attributes.items())))
        first = self.known.get(key)
        if first is None:
            first = self.known[key] = f"v{len(self.nodes)}"
            names = [first, *(f"{first}.{i}" for i in range(1, outputs))]
            label = f"{self.layer}.{len(self.nodes)}"
            self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), names, name=label, **attributes))
            self.operations.add(kind)
        return [first, *(f"{first}.{i}" for i in range(1, outputs))]

    def tensor(self, array: NDArray[Any]) -> str:
        key = (array.tobytes(), array.shape, str(array.dtype))
        if key not in self.tensors:
            self.tensors[key] = self.onnx.numpy_helper.from_array(array, name=f"c{len(self.tensors)}")
        return str(self.tensors[key].name)

    def integers(self, *values: int) -> str:
        return self.tensor(np.array(values, dtype=np.int64))

    def weight(self, values: Tensor) -> str:
        """A float32 tensor; what rounding changes is noted."""
        exact = values.detach().cpu().contiguous()
        stored = exact.to(torch.float32)
        back = stored.to(torch.float64)
        if not bool(torch.isfinite(stored).all()):
            raise NumericalFailure(f"Layer `{self.layer}`: its weights overflow float32, which ONNX verifiers read.")
        change = torch.where(back == exact, 0.0, (back - exact).abs() / exact.abs())
        self.rounding = max(self.rounding, float(change.max()))
        return self.tensor(stored.numpy())

    def number(self, value: float) -> float:
        """A constant as float32 keeps it; what rounding changes is noted."""
        with np.errstate(over="ignore"):
            stored = float(np.float32(value))
        if not math.isfinite(stored):
            raise NumericalFailure(f"Layer `{self.layer}`: its constant {value:g} overflows float32.")
        if stored != value:
            self.rounding = max(self.rounding, abs(stored - value) / abs(value))
        return stored

    def scalar(self, value: float) -> str:
        return self.tensor(np.array(self.number(value), dtype=np.float32))

    def parts(self, value: float) -> list[float]:
        """Numbers of float32 with exactly this positive sum, unless they become too small (which is noted)."""
        parts, rest = list[float](), value
        while rest >= 2.0**-149 or rest <= -(2.0**-149):  # 24 bits each, so at most three of them
            parts.append(float(np.float32(rest)))
            rest -= parts[-1]
        if not parts:
            raise NumericalFailure(f"Layer `{self.layer}`: its constant {value:g} is zero in float32.")
        self.rounding = max(self.rounding, abs(rest) / value)
        return parts

    def reshaped(self, value: str, *shape: int) -> str:
        return self.op("Reshape", value, self.integers(1, *shape))

    def unsupported(self, operation: str, hint: str = "") -> UnsupportedOperation:
        return UnsupportedOperation(self.layer, f"{operation} in the ONNX dialect `{self.dialect}`", hint)

    def only_native(self, operation: str) -> None:
        if self.dialect == "relu":
            raise self.unsupported(operation, "The dialect `native` takes it.")

    # --- what the nodes' functions share ------------------------------------------------------------------------------

    def convolution(
        self, node: Conv, value: str, weight: Tensor, steps: tuple[tuple[int, ...], tuple[int, ...]], pads: list[int]
    ) -> str:
        bias = weight.new_zeros(len(weight)) if node.bias is None else node.bias
        return self.op(
            "Conv",
            value,
            self.weight(weight),
            self.weight(bias),
            kernel_shape=list(weight.shape[2:]),
            strides=list(steps[0]),
            dilations=list(steps[1]),
            group=node.groups,
            pads=pads,
        )

    def circular(self, value: str, node: Conv) -> str:
        """The last entries before the first and the first after the last, one axis after the other."""
        for axis, (before, after) in enumerate(node.padding, start=2):
            n = self.shapes[0][axis - 1]
            parts = [value]
            if before:
                parts.insert(0, self.cut(value, n - before, n, axis))
            if after:
                parts.append(self.cut(value, 0, after, axis))
            value = self.op("Concat", *parts, axis=axis) if len(parts) > 1 else value
        return value

    def cut(self, value: str, start: int, end: int, axis: int) -> str:
        return self.op("Slice", value, self.integers(start), self.integers(end), self.integers(axis))

    def total(self, values: Sequence[str]) -> str:
        total = values[0]
        for value in values[1:]:
            total = self.op("Add", total, value)
        return total

    def affine(self, z: str, factor: float, shift: float = 0.0) -> str:
        if factor == -1.0:
            z = self.op("Neg", z)
        elif factor != 1.0:
            z = self.op("Mul", z, self.scalar(factor))
        return z if shift == 0.0 else self.op("Add", z, self.scalar(shift))


__all__ = ["EMIT", "IR_VERSION", "OPSET", "Emitter"]
