"""A network behind a factor for each entry of its input, so that a box is a cube."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from lipbridge.checks import floating
from lipbridge.errors import InvalidArgument
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.graph.nodes import Conv, Input, Node, Reshape


def stretched(graph: Graph, factors: Tensor) -> Graph:
    """``f(factors * u)``; nothing is rounded.

    Args:
        graph: f.
        factors: ``(*input_shape)`` float64, finite.

    Raises:
        InvalidArgument: for other factors.
    """
    graph = with_axes(graph)
    factors = floating(factors, "factors", finite=True)
    if factors.shape != graph.input_shape:
        raise InvalidArgument("factors", f"have the shape {graph.input_shape}", tuple(factors.shape))
    n = math.prod(graph.input_shape)
    weight = factors.double().reshape(n, 1).to(graph.device)
    nodes: list[Node] = [
        Input("u", (), graph.input_shape),
        Reshape("u", (0,), (n,)),
        Conv("factors", (1,), (n,), weight, stride=(), padding=(), dilation=(), groups=n),
        Reshape("x", (2,), graph.input_shape),
    ]
    more = len(nodes) - 1
    nodes += [replace(node, inputs=tuple(i + more for i in node.inputs)) for node in graph.nodes[1:]]
    return Graph(tuple(nodes), graph.name)


__all__ = ["stretched"]
