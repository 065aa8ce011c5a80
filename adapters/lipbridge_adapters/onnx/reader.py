"""Reads the operators of an ONNX graph one by one into nodes, with the functions of the core's builder.

A value on the way is a constant, or a :class:`Flow`: a curve of the builder and the shape that ONNX gives it, which
counts the batch. The batch is one. A flow's own node may have another shape of the same order of entries: reshapes,
flattenings and axes of length one cost nothing until an operator needs the shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.builder import LINE, Curve, Deferred, GraphBuilder, Recipe
from lipbridge.frontend.extremes import AxisExtreme, Extreme
from lipbridge.frontend.shapes import Part, seen_as
from lipbridge.graph.graph import Graph, stored, without_dead_nodes
from lipbridge.graph.nodes import Node
from lipbridge_adapters.onnx.constants import BUDGET, fold
from lipbridge_adapters.onnx.file import Fault, OnnxFile, tensor_of

#: Entries of a layer's value, and of a weight that an operator makes.
MAX_SIZE = 2**24
#: Functions that may come together on one source before they become a layer.
MAX_COMPONENTS, MAX_TERMS = 64, 16


@dataclass(frozen=True, eq=False)
class Flow:
    """A function of the network's input. ``shape`` counts the batch; ``fresh`` says that no other value is its node."""

    value: Any
    shape: tuple[int, ...]
    fresh: bool = False


@dataclass(frozen=True)
class Scaled(Deferred):
    """A bent curve times a number: a curve as well, but what is measured against the bend may ask for the two."""

    made: Curve
    bent: Curve
    factor: float

    def materialise(self, builder: GraphBuilder) -> Curve:
        """The product."""
        return self.made


Value = Flow | Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """One operator with its inputs (None where one is left out) and attributes."""

    kind: str
    inputs: list[Value | None]
    attributes: dict[str, Any]
    opset: int
    outputs: int
    alone: tuple[bool, ...]

    def flow(self, place: int = 0) -> Flow:
        """An input that must be a function of the network's input."""
        found = self.inputs[place] if place < len(self.inputs) else None
        if not isinstance(found, Flow):
            raise Fault(f"its operator {self.kind} needs a layer's values as input {place}")
        return found

    def constant(self, place: int) -> Tensor | None:
        """An input that must be constant, or None if it is left out."""
        found = self.inputs[place] if place < len(self.inputs) else None
        if isinstance(found, Flow):
            raise Fault(f"its operator {self.kind} needs a constant as input {place}")
        return found

    def numbers(self, place: int) -> Tensor:
        """A constant input of floating point numbers that must be there."""
        found = self.constant(place)
        if found is None or not found.is_floating_point():
            raise Fault(f"its operator {self.kind} needs floating point numbers as input {place}")
        return found

    @property
    def constants(self) -> list[Tensor | None]:
        """All inputs, a layer's values left out."""
        return [None if isinstance(value, Flow) else value for value in self.inputs]


def per_input(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape of a Graph: without the batch of one, if there is one."""
    if not shape:
        return (1,)
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def has_batch(shape: tuple[int, ...]) -> bool:
    """Whether the first axis is a batch of one."""
    return len(shape) > 1 and shape[0] == 1


Operator = Callable[["OnnxReader", Call], "Value | list[Value]"]
Registered = TypeVar("Registered", bound=Operator)
OPERATORS: dict[str, tuple[Operator, frozenset[str]]] = {}


def operator(names: str, attributes: str = "") -> Callable[[Registered], Registered]:
    """Register a handler for operators of these names, which have no attributes but these."""

    def add(handler: Registered) -> Registered:
        for name in names.split():
            OPERATORS[name] = (handler, frozenset(attributes.split()))
        return handler

    return add


class OnnxReader(GraphBuilder):
    """Builds the Graph of one file."""

    def __init__(self, file: OnnxFile, entry: str, shape: tuple[int, ...]) -> None:
        super().__init__(per_input(shape), torch.device("cpu"))
        self.file = file
        self.entry_shape = shape
        self.needed: list[int] = []  # places of the nodes that the output needs
        self.named: dict[str, Value] = {entry: Flow(Curve(0, (LINE,)), shape)}
        self.spent, self.held = 0, 0  # numbers that were computed, and read from the file
        self.counted: set[int] = set()
        self.turned: dict[tuple[int, tuple[int, ...]], Curve] = {}  # nodes under another shape
        self.stored: dict[str, Any] = {}
        self.underflowing: list[Curve] = []  # lines below which float32 has lost a value to zero

    def read_graph(self, output: str, name: str) -> Graph:
        """The Graph of the value ``output``."""
        graph = self.file.graph
        produced: dict[str, int] = {}
        for tensor in graph.initializer:
            self._once(str(tensor.name), produced, -1)
            self.stored[str(tensor.name)] = tensor
        for index, node in enumerate(graph.node):
            for made in node.output:
                if made:
                    self._once(str(made), produced, index)
        if any(entry in produced for entry in self.named):
            raise Fault("its input has the name of another value")
        needed = self.needed = self._needed(output, produced)
        readers: dict[str, int] = {output: 1}
        for index in needed:
            for source in graph.node[index].input:
                readers[str(source)] = readers.get(str(source), 0) + 1
        for index in needed:
            self._node(graph.node[index], readers)
        self.layer, self.operation = "output", "output"
        found = self._value(output)
        if not isinstance(found, Flow):
            raise UnsupportedOperation("output", output[:60], "It does not depend on the input.")
        value = self.curve(found.value)
        shape, wanted = self.shape_of(value), per_input(found.shape)
        if _without_ones(shape) != _without_ones(wanted) or len(shape) > len(wanted):
            value = self.seen(found)  # only axes of length one that the node has not are left out
        last = self.materialise(value)
        return without_dead_nodes(self.graph_of_nodes(name), last)

    def _once(self, name: str, produced: dict[str, int], index: int) -> None:
        if name in produced:
            raise Fault(f"it gives the name {name[:60]!r} to two values")
        produced[name] = index

    def _needed(self, output: str, produced: Mapping[str, int]) -> list[int]:
        """The nodes that the output needs, in the file's order."""
        if output not in produced and output not in self.named:
            raise Fault(f"no operator gives its output {output[:60]!r}")
        waiting, needed = [output], set[int]()
        while waiting:
            index = produced.get(waiting.pop(), -1)
            if index >= 0 and index not in needed:
                needed.add(index)
                waiting.extend(str(source) for source in self.file.graph.node[index].input)
        return sorted(needed)

    def _value(self, name: str) -> Value:
        if name not in self.named:
            if name not in self.stored:
                raise Fault(f"it reads the value {name[:60]!r} before an operator gives it, or none ever does")
            found = tensor_of(self.stored[name], self.file.path.parent)
            self.held += found.numel()
            self.counted.add(int(found.untyped_storage().data_ptr()))
            self.named[name] = found
        return self.named[name]

    def _node(self, proto: Any, readers: Mapping[str, int]) -> None:
        self.operation = printable(str(proto.op_type))[:60]
        made = [str(name) for name in proto.output]
        self.layer = printable(str(proto.name) or next(iter(made), ""))
        if proto.domain not in ("", "ai.onnx") and (proto.domain, self.operation) != ("ai.onnx.ml", "Scaler"):
            raise self.unsupported(f"It belongs to the domain {str(proto.domain)[:60]!r}; only ONNX's own is read.")
        inputs = [self._value(str(name)) if name else None for name in proto.input]
        attributes = {str(a.name): self._attribute(a) for a in proto.attribute}
        alone = tuple(readers.get(str(name), 0) == 1 for name in proto.input)
        call = Call(self.operation, inputs, attributes, self.file.opset, len(made), alone)
        found = self._call_operator(call)
        results = found if isinstance(found, list) else [found]
        for name, value in zip(made, results, strict=False):
            if name:
                self.named[name] = value

    def _call_operator(self, call: Call) -> Value | list[Value]:
        if call.kind == "Constant":
            return self._constant_of(call)
        if call.kind == "Shape" and isinstance(call.inputs[0], Flow):
            whole = torch.tensor(list(call.flow().shape), dtype=torch.int64)
            return whole[call.attributes.get("start", 0) : call.attributes.get("end")]
        flows = any(isinstance(value, Flow) for value in call.inputs)
        if call.inputs and not flows:
            folded = fold(call.kind, call.constants, call.attributes, call.opset)
            if folded is None:
                raise self.unsupported("It is not computed for constants.")
            self._spend(folded)
            return folded
        if call.kind not in OPERATORS:
            raise self.unsupported(_HINTS.get(call.kind, ""))
        handler, known = OPERATORS[call.kind]
        unknown = set(call.attributes) - known
        if unknown:
            raise self.unsupported(f"Its attribute {min(unknown)[:60]!r} is not known.")
        return handler(self, call)

    def _constant_of(self, call: Call) -> Tensor:
        ((name, value),) = call.attributes.items() if len(call.attributes) == 1 else [("", None)]
        if name == "value" and isinstance(value, Tensor):
            return value
        if name in ("value_float", "value_floats"):
            found = torch.tensor(value, dtype=torch.float64)
            if bool(found.isnan().any()):
                raise Fault("a constant of it is NaN")
            return found
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
        raise self.unsupported("It holds no tensor of numbers.")

    def _attribute(self, proto: Any) -> Any:
        if proto.ref_attr_name:
            raise Fault("an attribute refers to a function's")
        kind = int(proto.type)
        if kind == 4:
            return tensor_of(proto.t, self.file.path.parent)
        if kind == 3:
            return bytes(proto.s).decode("utf-8", "replace")
        fields: Mapping[int, Callable[[], Any]] = {
            1: lambda: float(proto.f),
            2: lambda: int(proto.i),
            6: lambda: [float(x) for x in proto.floats],
            7: lambda: [int(x) for x in proto.ints],
            8: lambda: [bytes(x).decode("utf-8", "replace") for x in proto.strings],
        }
        if kind not in fields:
            raise Fault(
                f"the attribute {str(proto.name)[:60]!r} of an operator {self.operation} is of a type not known"
            )
        return fields[kind]()

    # --- what the builder's functions ask for -----------------------------------------------------------------------

    def curve(self, value: Any) -> Curve:
        """As the builder does; a selection by an enormous matrix is refused before it is made."""
        if isinstance(value, Part) and value.axis == 0:
            self.require_small(value.count * self.shape_of(value.value)[0])
        return super().curve(value)

    def append(self, node: Node, recipe: Recipe | None = None) -> Curve:
        """As the builder does, within the limits of size."""
        self.require_small(math.prod(node.shape))
        if not all(n >= 1 for n in node.shape):
            raise self.unsupported(f"Its values have the shape {node.shape}.")
        for tensor in stored(node).values():
            self._spend(tensor)
        return super().append(node, recipe)

    def require_small(self, size: int) -> None:
        """Refuse what would take gigabytes.

        Raises:
            UnsupportedOperation: if a value or a weight has more than 2^24 entries.
        """
        if size > MAX_SIZE:
            raise self.unsupported(f"It needs {size} numbers, and {MAX_SIZE} are allowed.")

    def _spend(self, tensor: Tensor) -> None:
        """Count memory that is not the file's own, each storage once."""
        storage = int(tensor.untyped_storage().data_ptr())
        if storage not in self.counted:
            self.counted.add(storage)
            self.spent += tensor.numel()
            if self.spent > BUDGET + 3 * self.held:
                raise Fault("the weights that it computes are enormous")

    # --- for the operators ----------------------------------------------------------------------------------------

    def in_shape(self, value: Any, shape: tuple[int, ...]) -> Any:
        """A flow's value with its node in the given shape of the same order."""
        if isinstance(value, Scaled):
            value = value.made
        if isinstance(value, AxisExtreme | Extreme) and self.shape_of(value) != shape:
            value = self.curve(value)
        if isinstance(value, Curve) and self.shape_of(value) != shape:
            if value.components != (LINE,):
                return seen_as(self, value, shape)
            key = (value.source, shape)
            if key not in self.turned:
                self.turned[key] = seen_as(self, value, shape)
            return self.turned[key]
        return value

    def seen(self, flow: Flow) -> Any:
        """A flow's value with its node in ONNX's shape, without batch."""
        return self.in_shape(flow.value, per_input(flow.shape))

    def moderate(self, value: Any) -> Any:
        """A value, made a node if it has become a sum of very many functions."""
        if isinstance(value, Curve):
            many = len(value.components) > MAX_COMPONENTS or max(len(c) for c in value.components) > MAX_TERMS
            return self.line(value) if many else value
        return value


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def printable(text: str) -> str:
    """A name from a file, fit for a message of one line."""
    return "".join(c if c.isprintable() else "?" for c in text)[:100] or "(without a name)"


SCORES = "Read the network up to the scores before it: name that value as the output (--output in the command line)."
_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("ArgMax", "ArgMin", "Hardmax"), SCORES),
    **dict.fromkeys(("If", "Loop", "Scan"), "A feed-forward network has no control flow."),
    **dict.fromkeys(("Exp",), "It has no global Lipschitz constant."),
    **dict.fromkeys(
        (
            *("QuantizeLinear", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"),
            *("Sign", "Round", "Floor", "Ceil"),
        ),
        "It jumps, so it has no Lipschitz constant.",
    ),
}

__all__ = [
    "OPERATORS",
    "SCORES",
    "Call",
    "Deferred",
    "Flow",
    "OnnxReader",
    "Value",
    "has_batch",
    "operator",
    "per_input",
]
