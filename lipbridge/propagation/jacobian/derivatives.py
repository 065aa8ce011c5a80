"""The derivative of each kind of node on regions: one cell a kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

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
)
from lipbridge.graph.rules import ProblemRule
from lipbridge.propagation.jacobian.derivative import Derivative
from lipbridge.propagation.jacobian.diagonal import diagonal, from_slopes
from lipbridge.propagation.jacobian.linear import Linear
from lipbridge.propagation.jacobian.normalising import NormalizeDerivative, SoftmaxDerivative
from lipbridge.propagation.jacobian.selection import Maximum, Sorted
from lipbridge.propagation.rules import Context, NodeBounds
from lipbridge.propagation.softmax import logarithms, probabilities
from lipbridge.propagation.space import normalised

#: The derivative of a node on k regions, given the shapes of its inputs and where these lie there.
derivative = ProblemRule[[list[tuple[int, ...]], list[NodeBounds], Context], Derivative](
    "Jacobian bounds", "has no bound of its derivative yet."
)

#: By node index, per component of an Elementwise an interval of its slopes, ``(k, *shape of its source)``.
Slopes = Mapping[int, Sequence[tuple[Tensor, Tensor]]]


@derivative.of(Dense, Conv, ConvTranspose, Gather, Reshape, Concat, Add)
def _linear(node: Node, shapes: list[tuple[int, ...]], inputs: list[NodeBounds], ball: Context) -> Derivative:
    return Linear(node, shapes)


@derivative.of(Elementwise)
def _(node: Elementwise, shapes: list[tuple[int, ...]], inputs: list[NodeBounds], ball: Context) -> Derivative:
    return diagonal(node, shapes[0], inputs[0].lower, inputs[0].upper)


@derivative.of(MaxPool)
def _(node: MaxPool, shapes: list[tuple[int, ...]], inputs: list[NodeBounds], ball: Context) -> Derivative:
    return Maximum(node, inputs[0].lower, inputs[0].upper)


@derivative.of(GroupSort)
def _(node: GroupSort, shapes: list[tuple[int, ...]], inputs: list[NodeBounds], ball: Context) -> Derivative:
    return Sorted(node, inputs[0].lower, inputs[0].upper)


@derivative.of(Normalize)
def _(node: Normalize, shapes: list[tuple[int, ...]], inputs: list[NodeBounds], ball: Context) -> Derivative:
    return NormalizeDerivative(node, *normalised(node, inputs[0], ball.norm))


@derivative.of(Softmax)
def _(node: Softmax, shapes: list[tuple[int, ...]], inputs: list[NodeBounds], ball: Context) -> Derivative:
    return SoftmaxDerivative(node, *probabilities(*logarithms(node, inputs[0])))


def derivatives(
    graph: Graph,
    bounds: Sequence[NodeBounds],
    ball: Context,
    slopes: Slopes | None = None,
    *,
    open_ends: Collection[int] = (),
) -> list[Derivative | None]:
    """The derivatives of all nodes, by index, where the nodes' values lie in ``bounds``; None for the Input.

    Args:
        graph: the network.
        bounds: by node index, of :func:`lipbridge.propagation.bounds.forward_bounds` or :func:`everywhere`.
        ball: the norm that the distances in ``bounds`` are in.
        slopes: of activations, in place of those that follow from the bounds.
        open_ends: nodes for which a kink at an end of an interval does not count.

    Raises:
        UnsupportedProblem: for a node without a rule.
    """
    found: list[Derivative | None] = [None]
    for index, node in enumerate(graph.nodes[1:], start=1):
        shapes = [graph.nodes[i].shape for i in node.inputs]
        if slopes is not None and index in slopes and isinstance(node, Elementwise):
            found.append(from_slopes(node, shapes[0], list(slopes[index])))
        elif isinstance(node, Elementwise) and node.inputs[0] in open_ends:
            x = bounds[node.inputs[0]]
            found.append(diagonal(node, shapes[0], x.lower, x.upper, open_ends=True))
        else:
            found.append(derivative(node, shapes, [bounds[i] for i in node.inputs], ball))
    return found


__all__ = ["Slopes", "derivative", "derivatives"]
