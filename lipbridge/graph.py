"""Graph: the one picture of a network that every verifier reads.

Nodes stand in topological order and come from a small closed set. Weights are float64 copies of what the module
stores (exact for float32, float16 and bfloat16), so a Graph is the real-number function that bounds are about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import singledispatch

import torch
from torch import Tensor

from lipbridge.activations import Activation
from lipbridge.errors import UnsupportedOperation, UnsupportedProblem


@dataclass(frozen=True, eq=False)
class Node:
    """A node: ``name`` (the layer's, for errors), ``inputs`` (indices of earlier nodes), ``shape`` without batch."""

    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The network's input, always node 0."""


@dataclass(frozen=True, eq=False)
class Dense(Node):
    """``W x + b`` on the last axis. ``weight`` is ``(m, n)`` float64, ``bias`` ``(m,)`` float64 or None.

    ``parameter`` is the dotted name of the module's tensor that the weight was read from, if it is one (so that a
    training penalty finds it), and ``transposed`` says that W is that tensor's transpose.
    """

    weight: Tensor
    bias: Tensor | None = None
    parameter: str | None = None
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Conv(Node):
    """A convolution on ``(channels, *space)``: kernel ``(out, in / groups, *kernel)``, per-axis geometry."""

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = (1,)
    padding: tuple[tuple[int, int], ...] = ((0, 0),)
    dilation: tuple[int, ...] = (1,)
    groups: int = 1
    padding_mode: str = "zeros"
    parameter: str | None = None


@dataclass(frozen=True, eq=False)
class Elementwise(Node):
    """One polyactivation on one source; K outputs per coordinate, in blocks along the last axis."""

    activation: Activation


@dataclass(frozen=True, eq=False)
class Concat(Node):
    """Concatenation along ``axis`` of the shape (batch not counted)."""

    axis: int = 0


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Sum of nodes of equal shape."""


@dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """Maximum over windows of ``(channels, *space)``."""

    kernel: tuple[int, ...] = (1,)
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    ceil_mode: bool = False


@dataclass(frozen=True, eq=False)
class GroupSort(Node):
    """Sorts groups of ``group`` neighbours along axis 0 in ascending order (MaxMin for 2)."""

    group: int = 2


@dataclass(frozen=True, eq=False)
class Reshape(Node):
    """A permutation of coordinates: transpose by ``axes`` (if given), then reshape to ``shape``."""

    axes: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as nodes in topological order; the last node is the output.

    Raises:
        ValueError: if a node reads a later one or node 0 is not the Input.
    """

    nodes: tuple[Node, ...]
    name: str = field(default="network")

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0], Input):
            raise ValueError("The first node of a Graph is its Input.")
        for index, node in enumerate(self.nodes):
            if any(source >= index or source < 0 for source in node.inputs):
                raise ValueError(f"Node `{node.name}` reads a node that does not come before it.")

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without batch."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output, without batch."""
        return self.nodes[-1].shape

    def __call__(self, x: Tensor) -> Tensor:
        """Evaluate at ``x`` of shape ``(batch, *input_shape)``; float64 in, float64 out, on the weights' device."""
        return self.values(x)[-1]

    def values(self, x: Tensor) -> list[Tensor]:
        """The values of all nodes at ``x``, by node index."""
        values: list[Tensor] = [x]
        for node in self.nodes[1:]:
            values.append(evaluate(node, [values[i] for i in node.inputs]))
        return values

    def tangent(self, x: Tensor, v: Tensor, width: float = 0.0) -> tuple[Tensor, Tensor]:
        """Value at ``x`` and Jacobian-vector product ``J(x) v``; both of shape ``(batch, *output_shape)``.

        With ``width`` above zero the derivative of kinked activations is smoothed over about that width, which makes
        the product differentiable in ``x`` (for ascent only: a smoothed Jacobian is no witness).
        """
        pairs: list[tuple[Tensor, Tensor]] = [(x, v)]
        for node in self.nodes[1:]:
            pairs.append(push(node, [pairs[i] for i in node.inputs], width))
        return pairs[-1]

    def compose_output(self, matrix: Tensor) -> Graph:
        """The graph of ``matrix @ f`` for a vector-valued f, with the product rounded if merged into a last Dense."""
        last = self.nodes[-1]
        matrix = matrix.to(torch.float64)
        if isinstance(last, Dense):
            bias = None if last.bias is None else matrix @ last.bias
            merged = Dense(last.name, last.inputs, (matrix.shape[0],), matrix @ last.weight, bias)
            return replace(self, nodes=(*self.nodes[:-1], merged))
        return replace(self, nodes=(*self.nodes, Dense("output", (len(self.nodes) - 1,), (matrix.shape[0],), matrix)))

    def to(self, device: torch.device | str) -> Graph:
        """The same graph with its weights on ``device``."""
        return replace(self, nodes=tuple(_moved(node, device) for node in self.nodes))

    def __repr__(self) -> str:
        lines = [f"Graph {self.name!r}: {self.input_shape} -> {self.output_shape}"]
        for index, node in enumerate(self.nodes):
            kind = type(node).__name__ + (f"({node.activation.name})" if isinstance(node, Elementwise) else "")
            lines.append(f"  {index:3d} {node.name:24s} {kind:24s} {node.inputs} -> {node.shape}")
        return "\n".join(lines)


def _moved(node: Node, device: torch.device | str) -> Node:
    if isinstance(node, Dense | Conv):
        bias = None if node.bias is None else node.bias.to(device)
        return replace(node, weight=node.weight.to(device), bias=bias)
    return node


# --- evaluation, one function a node type --------------------------------------------------------------------------


@singledispatch
def evaluate(node: Node, inputs: list[Tensor]) -> Tensor:
    """The value of a node given its inputs' values (batched)."""
    raise UnsupportedOperation(node.name, type(node).__name__)


@evaluate.register
def _(node: Dense, inputs: list[Tensor]) -> Tensor:
    y = inputs[0] @ node.weight.T
    return y if node.bias is None else y + node.bias


@evaluate.register
def _(node: Elementwise, inputs: list[Tensor]) -> Tensor:
    return node.activation(inputs[0])


@evaluate.register
def _(node: Reshape, inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if node.axes is not None:
        x = x.permute(0, *(axis + 1 for axis in node.axes))
    return x.reshape(x.shape[0], *node.shape)


@evaluate.register
def _(node: Concat, inputs: list[Tensor]) -> Tensor:
    return torch.cat(inputs, dim=node.axis + 1)


@evaluate.register
def _(node: Add, inputs: list[Tensor]) -> Tensor:
    return torch.stack(inputs).sum(0)


@singledispatch
def push(node: Node, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    """Value and tangent of a node given its inputs' values and tangents."""
    raise UnsupportedOperation(node.name, type(node).__name__)


@push.register
def _(node: Dense, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    x, v = pairs[0]
    return evaluate(node, [x]), v @ node.weight.T


@push.register
def _(node: Elementwise, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    z, v = pairs[0]
    return node.activation(z), torch.cat([d * v for d in node.activation.derivatives(z, width)], dim=-1)


def _push_linear(node: Node, pairs: list[tuple[Tensor, Tensor]], width: float) -> tuple[Tensor, Tensor]:
    return evaluate(node, [x for x, _ in pairs]), evaluate(node, [v for _, v in pairs])


for _kind in (Reshape, Concat, Add):
    push.register(_kind, _push_linear)


# --- chains ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Chain:
    """A sequential dense network: ``W_L g_(L-1)(... g_1(W_1 x + b_1) ...) + b_L``; ``len(layers) = len(gs) + 1``."""

    layers: tuple[Dense, ...]
    activations: tuple[Activation, ...]


def as_chain(graph: Graph) -> Chain:
    """Read a Graph as a chain of dense layers with one activation between each two.

    Raises:
        UnsupportedProblem: naming the first node that does not fit.
    """
    layers: list[Dense] = []
    activations: list[Activation] = []
    for index, node in enumerate(graph.nodes[1:], start=1):
        in_line = node.inputs == (index - 1,)
        if in_line and isinstance(node, Dense) and len(layers) == len(activations):
            layers.append(node)
        elif in_line and isinstance(node, Elementwise) and len(layers) == len(activations) + 1:
            activations.append(node.activation)
        elif not (in_line and isinstance(node, Reshape) and not layers and node.axes is None):
            raise UnsupportedProblem(
                f"Layer `{node.name}` ({type(node).__name__}) does not fit a chain of dense layers with one "
                "activation between each two."
            )
    if not layers or len(layers) != len(activations) + 1:
        raise UnsupportedProblem("A dense chain starts and ends with a dense layer; this network does not.")
    return Chain(tuple(layers), tuple(activations))
