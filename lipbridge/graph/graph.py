"""Graph: the one picture of a network that every verifier reads.

Nodes (:mod:`lipbridge.graph.nodes`) stand in topological order and come from a small closed set. Weights are float64
copies of what the module stores (exact for float32, float16 and bfloat16), so a Graph is the real-number function that
bounds are about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.graph.evaluation import evaluate, push
from lipbridge.graph.nodes import (
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Input,
    Node,
    Reshape,
)

K = TypeVar("K")
T = TypeVar("T")


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
        weight = next((t for node in self.nodes for t in stored(node).values() if t.is_floating_point()), None)
        if weight is not None and (x.dtype != weight.dtype or x.device.type != weight.device.type):
            words = f"be {weight.dtype} on {weight.device}, as the weights are (x.to(graph.device, {weight.dtype}))"
            raise InvalidArgument("x", words, f"{x.dtype} on {x.device}")
        return self.fold(x, lambda _, node, inputs: evaluate(node, inputs))

    def fold(self, first: T, step: Callable[[int, Node, list[T]], T]) -> T:
        """What a pass over the nodes, in order, gives at the last: ``first`` at the Input, elsewhere ``step``.

        What a node gave is let go of behind the last one that reads it.

        Args:
            first: of node 0.
            step: of a node's index, the node, and what its inputs gave.
        """
        last = len(self.nodes) - 1
        return self._fold(first, step, range(last, last + 1))[last]

    def fold_all(self, first: T, step: Callable[[int, Node, list[T]], T]) -> list[T]:
        """As :meth:`fold`, what the pass gives at every node, by node index."""
        return list(self._fold(first, step, range(len(self.nodes))).values())

    def _fold(self, first: T, step: Callable[[int, Node, list[T]], T], kept: range) -> dict[int, T]:
        """What a pass gives at the nodes ``kept``, by node index."""
        last_reader = {i: index for index, node in enumerate(self.nodes) for i in node.inputs}
        found = {0: first}
        for index, node in enumerate(self.nodes[1:], start=1):
            found[index] = step(index, node, [found[i] for i in node.inputs])
            for i in {*node.inputs, index}:
                if i not in kept and last_reader.get(i, i) <= index:
                    del found[i]
        return found

    def readers(self) -> list[list[int]]:
        """By node index, the nodes that read it, in order; one that reads it twice is there twice."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                found[source].append(index)
        return found

    def values(self, x: Tensor) -> list[Tensor]:
        """The values of all nodes at ``x``, by node index."""
        return self.fold_all(x, lambda _, node, inputs: evaluate(node, inputs))

    def tangent(self, x: Tensor, v: Tensor, width: float = 0.0) -> tuple[Tensor, Tensor]:
        """Value at ``x`` and Jacobian-vector product ``J(x) v``; both of shape ``(batch, *output_shape)``.

        With ``width`` above zero the derivative of kinked activations is smoothed over about that width, which makes
        the product differentiable in ``x`` (for ascent only: a smoothed Jacobian is no witness).
        """
        return self.fold((x, v), lambda _, node, pairs: push(node, pairs, width))

    def compose_output(self, matrix: Tensor) -> Graph:
        """The graph of ``matrix @ f`` for a vector-valued f, with the product rounded if merged into a last Dense."""
        last = self.nodes[-1]
        matrix = matrix.to(torch.float64)
        if isinstance(last, Dense) and not has_errors(last):
            bias = None if last.bias is None else matrix @ last.bias
            merged = Dense(last.name, last.inputs, (matrix.shape[0],), matrix @ last.weight, bias)
            return replace(self, nodes=(*self.nodes[:-1], merged))
        return replace(self, nodes=(*self.nodes, Dense("output", (len(self.nodes) - 1,), (matrix.shape[0],), matrix)))

    def margins(self, label: int, rivals: Sequence[int] | None = None) -> Graph:
        """The graph of the differences ``f_label - f_j``, exactly: of each rival j, of all other outputs if not given.

        Raises:
            InvalidArgument: if the output is no vector, or a number is not the place of an output.
        """
        if len(self.output_shape) != 1 or self.output_shape[0] < 2:
            raise InvalidArgument("network", "have at least two outputs, in one axis", self.output_shape)
        (K,) = self.output_shape
        others = [j for j in range(K) if j != label] if rivals is None else list(rivals)
        for name, number in (("label", label), *(("rivals", j) for j in others)):
            checks.whole(number, name, 0, K - 1)
        if label in others or not others:
            raise InvalidArgument("rivals", "be other outputs than the label", checks.told(rivals))
        matrix = torch.zeros(len(others), K, dtype=torch.float64, device=self.device)
        matrix[:, label] = 1.0
        matrix[range(len(others)), others] = -1.0
        margins = Dense("margins", (len(self.nodes) - 1,), (len(others),), matrix)
        return replace(self, nodes=(*self.nodes, margins))

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU for a Graph without any."""
        return self.device_or(torch.device("cpu"))

    def device_or(self, other: torch.device) -> torch.device:
        """Where the weights are; ``other`` for a Graph without any."""
        return next((tensor.device for node in self.nodes for tensor in stored(node).values()), other)

    def to(self, device: torch.device | str) -> Graph:
        """The same graph with its weights on ``device``."""
        moved = [replace(node, **{name: t.to(device) for name, t in tensors(node).items()}) for node in self.nodes]
        return replace(self, nodes=tuple(moved))

    def __repr__(self) -> str:
        lines = [f"Graph {self.name!r}: {self.input_shape} -> {self.output_shape}"]
        for index, node in enumerate(self.nodes):
            kind = type(node).__name__ + (f"({node.activation.name})" if isinstance(node, Elementwise) else "")
            lines.append(f"  {index:3d} {node.name:24s} {kind:24s} {node.inputs} -> {node.shape}")
        return "\n".join(lines)


def tensors(node: Node) -> dict[str, Tensor]:
    """All tensors that a node holds, by field, in its fields' order: weights, indices, and how far they may be off."""
    return {name: value for name, value in vars(node).items() if isinstance(value, Tensor)}


def stored(node: Node) -> dict[str, Tensor]:
    """The tensors that make a node's function, by field: its ``weight``, then its ``bias``; a Gather's ``index``."""
    return {name: tensor for name, tensor in tensors(node).items() if not name.endswith("error")}


def multiply_adds(graph: Graph) -> float:
    """About how many products one evaluation adds up."""
    weights = ((node, tensors(node).get("weight")) for node in graph)
    return float(sum(math.prod((*node.shape, *weight.shape[1:])) for node, weight in weights if weight is not None))


def has_errors(node: Node) -> bool:
    """Whether a node's weight or bias is only known up to an error."""
    return isinstance(node, Dense | Conv | ConvTranspose) and not (node.error is None and node.bias_error is None)


def alive_nodes(graph: Graph, output: int | None = None) -> list[int]:
    """The places, in order, of the Input and of the nodes that node ``output`` (the last if None) reads on the way."""
    start = len(graph.nodes) - 1 if output is None else output
    return sorted({0} | reached([start], lambda index: graph.nodes[index].inputs))


def reached(starts: Iterable[K], reads: Callable[[K], Iterable[K]]) -> set[K]:
    """The starts, what they read, what that reads, and so on."""
    found, waiting = set[K](), [*starts]
    while waiting:
        item = waiting.pop()
        if item not in found:
            found.add(item)
            waiting.extend(reads(item))
    return found


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
    "Graph",
    "alive_nodes",
    "has_errors",
    "multiply_adds",
    "reached",
    "stored",
    "tensors",
    "with_axes",
    "without_dead_nodes",
]
