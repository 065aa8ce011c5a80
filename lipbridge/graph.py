"""Graph: the one picture of a network that every verifier reads.

Nodes (:mod:`lipbridge.nodes`) stand in topological order and come from a small closed set. Weights are float64 copies
of what the module stores (exact for float32, float16 and bfloat16), so a Graph is the real-number function that bounds
are about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.activations import Activation
from lipbridge.errors import InvalidArgument, UnsupportedProblem
from lipbridge.evaluation import evaluate, push
from lipbridge.nodes import (
    Add,
    Concat,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Gather,
    GroupSort,
    Input,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
    block_axis,
)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as nodes in topological order; the last node is the output.

    Raises:
        ValueError: if a node reads a later one, has a shape without axes (the last one may be a Reshape to that, for
            a number an input), or node 0 is not the Input.
    """

    nodes: tuple[Node, ...]
    name: str = field(default="network")

    def __post_init__(self) -> None:
        if not self.nodes or not isinstance(self.nodes[0], Input):
            raise ValueError("The first node of a Graph is its Input.")
        for index, node in enumerate(self.nodes):
            if not node.shape and not (index == len(self.nodes) - 1 and isinstance(node, Reshape)):
                raise ValueError(f"Node `{node.name}` has a shape without axes: a number is held in the shape (1,).")
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
        """Evaluate at ``x`` of shape ``(batch, *input_shape)``; float64 in, float64 out, on the weights' device.

        Raises:
            InvalidArgument: for another shape, or numbers that are not of the weights' dtype or not where they are.
        """
        spelt = f"(batch, {', '.join(map(str, self.input_shape))})"
        checks.instance(x, Tensor, "x", f"be a tensor of shape {spelt}")
        if not x.ndim or tuple(x.shape[1:]) != self.input_shape:
            raise InvalidArgument("x", f"have shape {spelt}", tuple(x.shape))
        weight = next((t for node in self.nodes for t in stored(node) if t.is_floating_point()), None)
        if weight is not None and (x.dtype != weight.dtype or x.device.type != weight.device.type):
            words = f"be {weight.dtype} on {weight.device}, as the weights are (x.to(graph.device, {weight.dtype}))"
            raise InvalidArgument("x", words, f"{x.dtype} on {x.device}")
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
        if isinstance(last, Dense) and not has_errors(last):
            bias = None if last.bias is None else matrix @ last.bias
            merged = Dense(last.name, last.inputs, (matrix.shape[0],), matrix @ last.weight, bias)
            return replace(self, nodes=(*self.nodes[:-1], merged))
        return replace(self, nodes=(*self.nodes, Dense("output", (len(self.nodes) - 1,), (matrix.shape[0],), matrix)))

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a Graph without any."""
        return next((tensor.device for node in self.nodes for tensor in stored(node)), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Graph:
        """The same graph with its weights on ``device``."""
        return replace(self, nodes=tuple(_moved(node, device) for node in self.nodes))

    def __repr__(self) -> str:
        lines = [f"Graph {self.name!r}: {self.input_shape} -> {self.output_shape}"]
        for index, node in enumerate(self.nodes):
            kind = type(node).__name__ + (f"({node.activation.name})" if isinstance(node, Elementwise) else "")
            lines.append(f"  {index:3d} {node.name:24s} {kind:24s} {node.inputs} -> {node.shape}")
        return "\n".join(lines)


def stored(node: Node) -> list[Tensor]:
    """The tensors that a node holds: its weight first, then its bias; or the index of a Gather."""
    if isinstance(node, Gather):
        return [node.index]
    if isinstance(node, Dense | Conv | ConvTranspose):
        return [node.weight] if node.bias is None else [node.weight, node.bias]
    return []


def _moved(node: Node, device: torch.device | str) -> Node:
    if isinstance(node, Gather):
        return replace(node, index=node.index.to(device))
    if isinstance(node, Dense | Conv | ConvTranspose):
        bias, *errors = (None if t is None else t.to(device) for t in (node.bias, node.error, node.bias_error))
        return replace(node, weight=node.weight.to(device), bias=bias, error=errors[0], bias_error=errors[1])
    return node


def has_errors(node: Node) -> bool:
    """Whether a node's weight or bias is only known up to an error."""
    return isinstance(node, Dense | Conv | ConvTranspose) and not (node.error is None and node.bias_error is None)


# --- chains ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Chain:
    """A sequential dense network: ``W_L g_(L-1)(... g_1(W_1 x + b_1) ...) + b_L``; ``len(layers) = len(gs) + 1``.

    Attributes:
        layers: W_l and b_l.
        activations: g_l.
        sources: for each activation the node of the Graph whose flattened values are its arguments.
        errors: for each layer how far each entry of its weight may be off, ``(m, n)`` float64; None if it is exact. If
            one is not, the layers have no biases: what they add was rounded as well, and is read from the Graph.
    """

    layers: tuple[Dense, ...]
    activations: tuple[Activation, ...]
    sources: tuple[int, ...]
    errors: tuple[Tensor | None, ...]


#: Matrices of at most so many entries are built to read a convolutional network as a chain.
LARGEST_CHAIN_MATRIX = 2**22


def as_chain(graph: Graph, *, rounded: bool = False) -> Chain:
    """Read a Graph as a chain of dense layers with one activation between each two.

    Other linear nodes (convolutions, BatchNorm, a factor, a second dense layer) are written as matrices if they are
    small, and merged.

    Args:
        graph: the network.
        rounded: whether weights and biases may be rounded in that; then :attr:`Chain.errors` says how far, and a bound
            of the chain is one of the network only with :func:`lipbridge.chain_rounding.rounding_term` added.

    Raises:
        UnsupportedProblem: naming the first node that does not fit, or why it cannot be lowered.
        NumericalFailure: if merged weights overflow.
    """
    reason = _misfit(graph)
    if reason is None:
        activations = [node for node in graph if isinstance(node, Elementwise)]
        layers = tuple(node for node in graph if isinstance(node, Dense))
        sources = tuple(node.inputs[0] for node in activations)
        uncertain = next(filter(has_errors, layers), None)
        if uncertain is None:
            return Chain(layers, tuple(node.activation for node in activations), sources, (None,) * len(layers))
        if not rounded:
            raise UnsupportedProblem(
                f"The weight of layer `{uncertain.name}` is computed from stored numbers, and rounded in that, so a "
                "bound of what is held would not be proved for the network."
            )
        plain = tuple(replace(layer, bias=None, error=None, bias_error=None) for layer in layers)
        found = tuple(node.activation for node in activations)
        return Chain(plain, found, sources, tuple(layer.error for layer in layers))
    for node in (graph.nodes[index] for index in alive_nodes(graph)):
        if isinstance(node, _BRANCHING):
            raise UnsupportedProblem(_out_of_place(node))
    from lipbridge.lowering_dense import lower_to_dense  # it builds on this file

    lowered = lower_to_dense(graph, largest=LARGEST_CHAIN_MATRIX)
    reason = _misfit(lowered.graph)
    if reason is not None:
        raise UnsupportedProblem(reason)
    if not lowered.exact and not rounded:
        name = next(iter(lowered.rounding))
        raise UnsupportedProblem(
            f"Layer `{name}` is rounded when the network is written as dense layers, so a bound of those would not "
            "be proved for this one. Give lower_to_dense(graph).graph itself."
        )
    places = [index for index, node in enumerate(lowered.graph) if isinstance(node, Dense)]
    layers = tuple(node for node in lowered.graph if isinstance(node, Dense))
    if not lowered.exact:
        layers = tuple(replace(layer, bias=None) for layer in layers)
    found = [(index, node) for index, node in enumerate(lowered.graph) if isinstance(node, Elementwise)]
    sources = tuple(graph.nodes[lowered.origins[index]].inputs[0] for index, _ in found)
    errors = tuple(lowered.errors.get(index) for index in places)
    return Chain(layers, tuple(node.activation for _, node in found), sources, errors)


#: Nodes that no chain of dense layers has, however the others are written.
_BRANCHING = (Add, GroupSort, MaxPool, Normalize, Softmax)


def _misfit(graph: Graph) -> str | None:
    """Why a Graph is no chain of dense layers as it stands; None if it is one."""
    layers = activations = 0
    for index, node in enumerate(graph.nodes[1:], start=1):
        in_line = node.inputs == (index - 1,)
        if in_line and isinstance(node, Dense) and len(node.shape) == 1 and layers == activations:
            layers += 1
        elif in_line and isinstance(node, Elementwise) and len(node.shape) == 1 and layers == activations + 1:
            activations += 1
        elif not (in_line and isinstance(node, Reshape) and not layers and node.axes is None):
            return _out_of_place(node)
    if not layers or layers != activations + 1:
        return "A dense chain starts and ends with a dense layer; this network does not."
    return None


def _out_of_place(node: Node) -> str:
    advice = " Bound the network before it, up to the logits." if isinstance(node, Softmax) else ""
    return (
        f"Layer `{node.name}` ({type(node).__name__}) does not fit a chain of dense layers with one activation "
        f"between each two.{advice}"
    )


def alive_nodes(graph: Graph, output: int | None = None) -> list[int]:
    """The places, in order, of the Input and of the nodes that node ``output`` (the last if None) reads on the way."""
    alive, waiting = {0}, [len(graph.nodes) - 1 if output is None else output]
    while waiting:
        index = waiting.pop()
        if index not in alive:
            alive.add(index)
            waiting.extend(graph.nodes[index].inputs)
    return sorted(alive)


def with_axes(graph: Graph) -> Graph:
    """The Graph with a number an input, of shape ``(batch,)``, in the shape ``(batch, 1)``; others as they are."""
    return graph if graph.output_shape else replace(graph, nodes=graph.nodes[:-1])


def without_dead_nodes(graph: Graph, output: int | None = None) -> Graph:
    """Only the nodes that node ``output`` (the last if None) reads on the way, and the Input; the output comes last."""
    order = alive_nodes(graph, output)  # the output comes last: all others are read on the way to it
    place = {index: position for position, index in enumerate(order)}
    nodes = [graph.nodes[i] for i in order]
    kept = tuple(replace(node, inputs=tuple(place[i] for i in node.inputs)) for node in nodes)
    return replace(graph, nodes=kept)


__all__ = [
    "Add",
    "Chain",
    "Concat",
    "Conv",
    "ConvTranspose",
    "Dense",
    "Elementwise",
    "Gather",
    "Graph",
    "GroupSort",
    "Input",
    "MaxPool",
    "Node",
    "Normalize",
    "Reshape",
    "Softmax",
    "alive_nodes",
    "as_chain",
    "block_axis",
    "evaluate",
    "has_errors",
    "push",
    "stored",
    "with_axes",
    "without_dead_nodes",
]
