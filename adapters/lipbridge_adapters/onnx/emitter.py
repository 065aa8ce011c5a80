"""Writes the nodes of a Graph as ONNX operators, in a form that :mod:`lipbridge_adapters.onnx.reading` reads back.

Opset 13 has all that is needed. What it has no operator for is written with several: circular padding with Slice and
Concat, sorting with TopK, normalisation with ReduceMean, Sqrt and Div; GELU with Erf or Tanh, SiLU with Sigmoid,
Mish with Softplus and Tanh, and Hardswish with Clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import singledispatchmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipbridge.activations.activation import Term
from lipbridge.activations.scalar_functions import GELU_RATE
from lipbridge.errors import NumericalFailure, UnsupportedOperation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
    block_axis,
)

OPSET = 13
IR_VERSION = 7
_PADDING = {"reflect": "reflect", "replicate": "edge"}


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
        values = ["X"]
        for node in self.graph.nodes[1:]:
            self.layer = node.name
            self.shapes = [self.graph.nodes[i].shape for i in node.inputs]
            values.append(self.emit(node, [values[i] for i in node.inputs]))
        if len(values) == 1:
            raise UnsupportedOperation("input", "a network without layers")
        if values[-1] == "X":
            values[-1] = self.op("Identity", "X")
        for node in self.nodes:  # the output may have readers, and may stand anywhere if it was needed before
            for names in (node.input, node.output):
                names[:] = ["Y" if name == values[-1] else name for name in names]
        ends = [
            helper.make_tensor_value_info(name, float32, [1, *shape])
            for name, shape in (("X", self.graph.input_shape), ("Y", self.graph.output_shape))
        ]
        graph = helper.make_graph(self.nodes, "lipbridge", ends[:1], ends[1:], list(self.tensors.values()))
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lipbridge")
        return model.SerializeToString()

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

    # --- linear nodes ---------------------------------------------------------------------------------------------

    @singledispatchmethod
    def emit(self, node: Node, inputs: list[str]) -> str:
        """The name of the value of ``node``."""
        raise self.unsupported(type(node).__name__)

    @emit.register
    def _(self, node: Dense, inputs: list[str]) -> str:
        if len(node.shape) == 1:
            bias = node.weight.new_zeros(len(node.weight)) if node.bias is None else node.bias
            return self.op("Gemm", inputs[0], self.weight(node.weight), self.weight(bias), transB=1)
        product = self.op("MatMul", inputs[0], self.weight(node.weight.T))
        return product if node.bias is None else self.op("Add", product, self.weight(node.bias))

    @emit.register
    def _(self, node: Conv, inputs: list[str]) -> str:
        rank = len(node.shape) - 1
        if rank > 3:
            raise self.unsupported(f"a {rank}-dimensional convolution")
        if node.diagonal and len(node.weight) > 1:
            # One number a channel, and one alone would be the same as a number for all: that one is a convolution.
            shape = (-1, *(1,) * rank)
            scaled = self.op("Mul", inputs[0], self.weight(node.weight.reshape(shape)))
            return scaled if node.bias is None else self.op("Add", scaled, self.weight(node.bias.reshape(shape)))
        if rank == 0:
            one = self.convolution(node, self.reshaped(inputs[0], 1, 1), node.weight[..., None], ((1,), (1,)), [0, 0])
            return self.op("Flatten", one, axis=1)
        value, pads = inputs[0], [0] * (2 * rank)
        if node.padding_mode == "zeros":
            pads = [pair[side] for side in (0, 1) for pair in node.padding]
        elif node.padding_mode == "circular":
            value = self.circular(value, node)
        elif any(any(pair) for pair in node.padding):
            widths = [width for side in (0, 1) for width in (0, 0, *(pair[side] for pair in node.padding))]
            value = self.op("Pad", value, self.integers(*widths), mode=_PADDING[node.padding_mode])
        return self.convolution(node, value, node.weight, (node.stride, node.dilation), pads)

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

    @emit.register
    def _(self, node: ConvTranspose, inputs: list[str]) -> str:
        """Pads are equal on both sides where ``output_padding`` can make up for the difference, as exporters do."""
        rank = len(node.shape) - 1
        if rank > 3:
            raise self.unsupported(f"a {rank}-dimensional transposed convolution")
        before, after, more = list[int](), list[int](), list[int]()
        beyond: list[tuple[int, int]] = []
        for (b, a), step in zip(node.padding, node.stride, strict=True):
            even = 0 <= b - a < step and b >= 0
            before.append(max(b, 0))
            after.append(b if even else max(a, 0))
            more.append(b - a if even else min(max(-a, 0), step - 1))
            beyond.append((max(-b, 0), 0 if even else max(-a, 0) - more[-1]))
        put_on = any(any(pair) for pair in beyond)
        bias = node.weight.new_zeros(node.shape[0]) if node.bias is None else node.bias
        value = self.op(
            "ConvTranspose",
            inputs[0],
            self.weight(node.weight),
            *([] if put_on else [self.weight(bias)]),
            kernel_shape=list(node.kernel),
            strides=list(node.stride),
            dilations=list(node.dilation),
            group=node.groups,
            pads=[*before, *after],
            **({"output_padding": more} if any(more) else {}),
        )
        if not put_on:
            return value
        widths = [width for side in (0, 1) for width in (0, 0, *(pair[side] for pair in beyond))]
        value = self.op("Pad", value, self.integers(*widths))
        return self.op("Add", value, self.weight(bias.reshape(-1, *(1,) * rank)))

    @emit.register
    def _(self, node: Gather, inputs: list[str]) -> str:
        """A slice along one axis, or entries of the flattened value, with a zero behind them where there are zeros."""
        size, found = math.prod(self.shapes[0]), _slice_of(node, self.shapes[0])
        if found is not None:
            ends = (self.integers(value) for value in (found[1], found[2], found[0] + 1))
            steps = [] if found[3] == 1 else [self.integers(found[3])]
            return self.op("Slice", inputs[0], *ends, *steps)
        value = inputs[0] if len(self.shapes[0]) == 1 else self.op("Flatten", inputs[0], axis=1)
        index = node.index.cpu()
        if bool((index < 0).any()):
            value = self.op("Pad", value, self.integers(0, 0, 0, 1))
            index = torch.where(index < 0, size, index)
        value = self.op("Gather", value, self.tensor(index.numpy()), axis=1)
        return value if len(node.shape) == 1 else self.reshaped(value, *node.shape)

    @emit.register
    def _(self, node: Reshape, inputs: list[str]) -> str:
        value = inputs[0]
        if node.axes is not None:
            value = self.op("Transpose", value, perm=[0, *(axis + 1 for axis in node.axes)])
        if len(node.shape) == 1:
            return self.op("Flatten", value, axis=1)
        return self.reshaped(value, *node.shape)

    @emit.register
    def _(self, node: Concat, inputs: list[str]) -> str:
        return self.op("Concat", *inputs, axis=node.axis + 1)

    @emit.register
    def _(self, node: Add, inputs: list[str]) -> str:
        return self.total(inputs)

    # --- other nodes ----------------------------------------------------------------------------------------------

    @emit.register
    def _(self, node: MaxPool, inputs: list[str]) -> str:
        """With ``ceil_mode`` the windows that reach beyond the end are written as padding, which readers agree on."""
        after = list(node.padding)
        if node.ceil_mode:
            space = zip(self.shapes[0][1:], node.shape[1:], strict=True)
            steps = zip(node.kernel, node.stride, node.dilation, node.padding, strict=True)
            axes = ((*ends, *step) for ends, step in zip(space, steps, strict=True))
            after = [max(0, (m - 1) * s + (k - 1) * d + 1 - n - b) for n, m, k, s, d, b in axes]
        return self.op(
            "MaxPool",
            inputs[0],
            kernel_shape=list(node.kernel),
            strides=list(node.stride),
            pads=[*node.padding, *after],
            **({} if set(node.dilation) == {1} else {"dilations": list(node.dilation)}),
        )

    @emit.register
    def _(self, node: GroupSort, inputs: list[str]) -> str:
        """All of each group, the smallest first."""
        self.only_native("GroupSort")
        if node.group == 1:
            return inputs[0]
        channels, *rest = node.shape
        groups = self.reshaped(inputs[0], channels // node.group, node.group, *rest)
        ordered = self.ops("TopK", 2, groups, self.integers(node.group), axis=2, largest=0, sorted=1)[0]
        return self.reshaped(ordered, *node.shape)

    @emit.register
    def _(self, node: Softmax, inputs: list[str]) -> str:
        self.only_native("Softmax")
        return self.op("LogSoftmax" if node.log else "Softmax", inputs[0], axis=node.axis + 1)

    @emit.register
    def _(self, node: Normalize, inputs: list[str]) -> str:
        """(x - mean) / sqrt(variance + epsilon), with epsilon as a sum of float32 numbers that is exact."""
        self.only_native("Normalize")
        runs = (node.groups, math.prod(node.shape) // node.groups)
        x = inputs[0] if node.shape == runs else self.reshaped(inputs[0], *runs)
        centred = self.op("Sub", x, self.op("ReduceMean", x, axes=[2], keepdims=1)) if node.centred else x
        variance = self.op("ReduceMean", self.op("Mul", centred, centred), axes=[2], keepdims=1)
        for part in self.parts(node.epsilon):
            variance = self.op("Add", variance, self.scalar(part))
        made = self.op("Div", centred, self.op("Sqrt", variance))
        return made if node.shape == runs else self.reshaped(made, *node.shape)

    @emit.register
    def _(self, node: Elementwise, inputs: list[str]) -> str:
        components = node.activation.components
        parts = [self.total([self.term(inputs[0], term) for term in component]) for component in components]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=block_axis(node) + 1)

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

    def term(self, z: str, term: Term) -> str:
        write = _FUNCTIONS.get(term.function)
        if write is None:
            raise self.unsupported(term.function)
        return self.affine(write(self, self.affine(z, term.scale, term.offset), term.parameters), term.coefficient)


def _slice_of(node: Gather, shape: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The axis, start, end and positive step of the one axis that is cut, if that is all."""
    cut = [axis for axis, (m, n) in enumerate(zip(node.shape, shape, strict=False)) if m != n]
    if len(node.shape) != len(shape) or len(cut) != 1 or bool((node.index < 0).any()):
        return None
    (axis,) = cut
    index = node.index.cpu().reshape(node.shape)
    line = index.movedim(axis, 0).reshape(len(index.movedim(axis, 0)), -1)[:, 0]
    after = math.prod(shape[axis + 1 :])
    start, count = int(line[0]) // after, len(line)
    step = int(line[1] - line[0]) // after if count > 1 else 1
    end = start + step * (count - 1) + 1
    if step < 1 or end > shape[axis]:
        return None
    rows = torch.arange(start, end, step)
    numbers = torch.arange(math.prod(shape)).reshape(shape).index_select(axis, rows)
    return (axis, start, end, step) if torch.equal(numbers, index) else None


_Write = Callable[[Emitter, str, tuple[float, ...]], str]


def _plain(kind: str) -> _Write:
    return lambda emitter, z, _: emitter.op(kind, z)


def _softplus(emitter: Emitter, z: str, parameters: tuple[float, ...]) -> str:
    (beta,) = parameters
    return emitter.affine(emitter.op("Softplus", emitter.affine(z, beta)), 1.0 / beta)


def _sin_squared(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    sine = emitter.op("Sin", z)
    return emitter.op("Mul", sine, sine)


def _gelu(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    error = emitter.op("Erf", emitter.affine(z, math.sqrt(0.5)))
    return emitter.op("Mul", emitter.affine(z, 0.5), emitter.affine(error, 1.0, 1.0))


def _gelu_tanh(emitter: Emitter, z: str, parameters: tuple[float, ...]) -> str:
    cube = emitter.op("Mul", emitter.op("Mul", z, z), z)
    inner = emitter.op("Add", z, emitter.affine(cube, parameters[0]))
    bent = emitter.op("Tanh", emitter.affine(inner, GELU_RATE))
    return emitter.op("Mul", emitter.affine(z, 0.5), emitter.affine(bent, 1.0, 1.0))


def _hardswish(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    clipped = emitter.op("Clip", emitter.affine(z, 1.0, 3.0), emitter.scalar(0.0), emitter.scalar(6.0))
    return emitter.affine(emitter.op("Mul", z, clipped), 1.0 / 6.0)


def _mish(emitter: Emitter, z: str, _: tuple[float, ...]) -> str:
    return emitter.op("Mul", z, emitter.op("Tanh", emitter.op("Softplus", z)))


#: How each scalar function is said in opset 13.
_FUNCTIONS: dict[str, _Write] = {
    "identity": lambda _emitter, z, _: z,
    "relu": _plain("Relu"),
    "abs": _plain("Abs"),
    "leaky_relu": lambda emitter, z, p: emitter.op("LeakyRelu", z, alpha=emitter.number(p[0])),
    "elu": lambda emitter, z, p: emitter.op("Elu", z, alpha=emitter.number(p[0])),
    "softplus": _softplus,
    "tanh": _plain("Tanh"),
    "sigmoid": _plain("Sigmoid"),
    "sin": _plain("Sin"),
    "cos": _plain("Cos"),
    "sin_squared": _sin_squared,
    "silu": lambda emitter, z, _: emitter.op("Mul", z, emitter.op("Sigmoid", z)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": _mish,
    "hardswish": _hardswish,
    "celu": lambda emitter, z, p: emitter.op("Celu", z, alpha=emitter.number(p[0])),
    "log_sigmoid": lambda emitter, z, _: emitter.op("Neg", emitter.op("Softplus", emitter.op("Neg", z))),
    "softsign": _plain("Softsign"),
    "atan": _plain("Atan"),
    "erf": _plain("Erf"),
}

__all__ = ["IR_VERSION", "OPSET", "Emitter"]
