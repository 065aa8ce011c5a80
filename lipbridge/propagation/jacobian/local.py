"""Local Lipschitz constants from bounds of the Clarke Jacobian: on balls, for all rows or for chosen ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lipbridge.graph.graph import Graph, with_axes
from lipbridge.graph.nodes import Node
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds, taken
from lipbridge.propagation.bounds import layer_norms as norms_of
from lipbridge.propagation.jacobian.derivatives import Slopes, derivatives
from lipbridge.propagation.jacobian.norms import Factors, Norms, factors_of
from lipbridge.propagation.rules import Context, NodeBounds
from lipbridge.rigor.running_error import Enclosure
from lipbridge.vocabulary import Norm

#: Steps that the lines around activations descend on the bounds of a unit that may be at a kink.
STEPS = 40
#: Regions are taken together up to so many numbers in the largest node's cotangents.
NUMBERS = 2**22


def local_constants(
    graph: Graph, ball: Ball | None, p: Norm, q: Norm, *, linear: bool = True, steps: int = STEPS
) -> Tensor:
    """``(k,)``: proved upper bounds of the l_p to l_q Lipschitz constants on each of k balls; everywhere for None.

    Args:
        graph: the network.
        ball: the regions; their norm need not be p.
        p, q: norms with p of at most q.
        linear: whether to propagate linear bounds of the cotangents.
        steps: how many steps the lines around activations descend on the bounds of units at a kink.

    Raises:
        UnsupportedProblem: for a node without a rule.
        NumericalFailure: if weights hold NaN.

    Law: never below ``|f(x) - f(y)|_q / |x - y|_p`` for x, y in one ball, in exact arithmetic.
    """
    graph = with_axes(graph)
    bounds, norm = region_bounds(graph, ball, steps)
    factors = factors_of(graph, p)
    rows = identity(graph)

    def of(part: list[NodeBounds], rows: Tensor) -> Tensor:
        found = Norms(graph, derivatives(graph, part, Context(norm)), p, rows, factors, linear=linear)
        return found.matrix(q)

    return in_chunks(graph, bounds, rows, of)


def row_constants(
    graph: Graph,
    ball: Ball,
    p: Norm,
    rows: Tensor,
    *,
    factors: Factors | None = None,
    layer_norms: Mapping[Node, float] | None = None,
    linear: bool = True,
    steps: int = STEPS,
) -> Tensor:
    """``(k, m)``: proved upper bounds of the constants from l_p of linear combinations of outputs, on each ball.

    Args:
        graph: the network.
        ball: k balls.
        p: norm of the input.
        rows: ``(k or 1, m, outputs)`` float64: the combinations, e.g. differences of two logits.
        factors: of :func:`factors_of` for p, if they are known.
        layer_norms: of :func:`lipbridge.propagation.bounds.layer_norms` in the balls' norm, likewise.
        linear: whether to propagate linear bounds of the cotangents.
        steps: how many steps the lines around activations descend on the bounds of units at a kink.
    """
    graph = with_axes(graph)
    bounds, norm = region_bounds(graph, ball, steps, layer_norms)
    factors = factors_of(graph, p) if factors is None else factors

    def of(part: list[NodeBounds], rows: Tensor) -> Tensor:
        known = derivatives(graph, part, Context(norm))
        return Norms(graph, known, p, rows, factors, linear=linear).rows_up

    return in_chunks(graph, bounds, rows, of)


def norm_of_jacobians(
    graph: Graph, slopes: Slopes, p: Norm, q: Norm, *, factors: Factors | None = None, linear: bool = True
) -> Tensor:
    """``(k,)``: upper bounds of the norm of all Jacobians with the given slopes of activations.

    Args:
        graph: the network; nodes that are neither linear nor activations count with all their derivatives.
        slopes: by index of every activation, per component an interval ``(k, *shape of its source)``.
        p, q: norms with p of at most q.
        factors: of :func:`factors_of` for p; without, the constants of nodes are not used.
        linear: whether to propagate linear bounds of the cotangents.
    """
    graph = with_axes(graph)
    found = derivatives(graph, everywhere(graph), Context(p), slopes)
    return Norms(graph, found, p, identity(graph), factors or {}, linear=linear).matrix(q)


def identity(graph: Graph) -> Tensor:
    """``(1, outputs, outputs)``: each output by itself."""
    return torch.eye(math.prod(graph.output_shape), dtype=torch.float64, device=graph.device)[None]


def region_bounds(
    graph: Graph, ball: Ball | None, steps: int, layer_norms: Mapping[Node, float] | None = None
) -> tuple[list[NodeBounds], Norm]:
    """The nodes' values on balls, or everywhere, and the norm that distances are in."""
    if ball is None:
        return everywhere(graph), 2
    norms = layer_norms or norms_of(graph, ball.norm)
    return forward_bounds(graph, ball, norms, steps=steps, open_only=True), ball.norm


def everywhere(graph: Graph) -> list[NodeBounds]:
    """Nothing known of any node's values."""
    found: list[NodeBounds] = []
    for node in graph.nodes:
        zero = torch.zeros(1, *node.shape, dtype=torch.float64, device=graph.device)
        none = torch.full_like(zero, math.inf)
        found.append(NodeBounds(-none, none, Enclosure(zero, none), zero.new_full((1,), math.inf)))
    return found


def in_chunks(
    graph: Graph, bounds: Sequence[NodeBounds], rows: Tensor, of: Callable[[list[NodeBounds], Tensor], Tensor]
) -> Tensor:
    """What ``of`` gives for some regions after the other, joined."""
    count = len(bounds[0].lower)
    widest = max(math.prod(node.shape) for node in graph.nodes)
    step = max(1, NUMBERS // (rows.shape[1] * widest))
    found: list[Tensor] = []
    for start in range(0, count, step):
        part = slice(start, start + step)
        own = rows if len(rows) == 1 else rows[part]
        values = of([taken(x, part) for x in bounds], own)
        found.append(values.expand(min(step, count - start), *values.shape[1:]))
    return torch.cat(found)


__all__ = [
    "everywhere",
    "identity",
    "in_chunks",
    "local_constants",
    "norm_of_jacobians",
    "region_bounds",
    "row_constants",
]
