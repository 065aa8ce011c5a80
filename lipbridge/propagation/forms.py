"""Lower bounds of linear combinations of a network's outputs on balls, such as the margins of a classification."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lipbridge.graph.graph import Graph, with_axes
from lipbridge.graph.nodes import Elementwise, Node
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds, taken, widths
from lipbridge.propagation.one_sided import choices_of, upper_of_forms
from lipbridge.propagation.rules import NodeBounds, halves, times
from lipbridge.rounding.scalars import FLOOR, gamma


def least_of_forms(
    graph: Graph,
    ball: Ball,
    rows: Tensor,
    layer_norms: Mapping[Node, float] | None = None,
    *,
    steps: int = 0,
    above: float | None = None,
) -> Tensor:
    """``(k, m)``: proved lower bounds of linear combinations of outputs on each ball.

    The better of two: by the intervals of the outputs, and by lines around the activations (CROWN's, rounded outward).

    Args:
        graph: the network.
        ball: k balls.
        rows: ``(k or 1, m, outputs)`` float64.
        layer_norms: of :func:`lipbridge.propagation.bounds.layer_norms` in the balls' norm.
        steps: as for :func:`lipbridge.propagation.bounds.forward_bounds`.
        above: what all combinations are to exceed: on the CPU, a ball where cheaper bounds of the nodes show that they
            do is done; elsewhere that would wait for the device.

    Law: no combination is less at any point of the ball, in exact arithmetic.
    """
    graph = with_axes(graph)
    if above is None or graph.device_or(ball.centers.device).type != "cpu":
        return _least(graph, ball, rows, forward_bounds(graph, ball, layer_norms, steps=steps, open_only=True))
    found = forward_bounds(graph, ball, layer_norms, linear=False)
    least = _least(graph, ball, rows, found)
    places = torch.arange(len(least))
    for sides in (False, True):
        open_ = ~(least[places] > above).all(1)
        places, found = places[open_], [taken(x, open_) for x in found]
        if not len(places):
            break
        part = Ball(ball.centers[places], ball.radius, ball.norm)
        narrowing = {i: (x.lower, x.upper) for i, x in enumerate(found) if i}
        found = forward_bounds(
            graph,
            part,
            layer_norms,
            parallel=not sides,
            steps=steps if sides else None,
            narrowing=narrowing,
            open_only=True,
        )
        own = _least(graph, part, rows if len(rows) == 1 else rows[places], found)
        least = least.index_put((places,), torch.fmax(least[places], own))
    return least


def _least(graph: Graph, ball: Ball, rows: Tensor, found: list[NodeBounds]) -> Tensor:
    """Lower bounds of combinations of outputs, by bounds of the nodes."""
    last = len(graph.nodes) - 1
    middle, half = (x.flatten(1) for x in halves(found[last]))
    size = times(rows.abs(), half + gamma(rows.shape[2] + 8) * middle.abs()) * (1.0 + gamma(rows.shape[2] + 16)) + FLOOR
    least = times(rows, middle) - size
    lines = {
        i: [choice.adaptive() for choice in choices_of(node, found[node.inputs[0]])]
        for i, node in enumerate(graph.nodes)
        if isinstance(node, Elementwise)
    }
    most = upper_of_forms(graph, last, -rows, found, lines, ball, widths(graph, last, found))
    least = least.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    return least if most is None else torch.fmax(least, -most)


__all__ = ["least_of_forms"]
