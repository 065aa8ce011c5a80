"""Graphs of nodes that are given without their shapes, and one for each kind of node."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.activations.registry import activation
from lipbridge.graph.evaluation import evaluate
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
    Input,
    MaxPool,
    Node,
    Normalize,
    Reshape,
    Softmax,
)


def graph_on(*nodes: Node, shape: tuple[int, ...]) -> Graph:
    """The nodes on an input of ``shape``; their shapes are filled in."""
    made: list[Node] = [Input("input", (), shape)]
    for node in nodes:
        values = [torch.zeros(1, *made[i].shape, dtype=torch.float64) for i in node.inputs]
        made.append(replace(node, shape=tuple(evaluate(node, values).shape[1:])))
    return Graph(tuple(made))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape)), dtype=torch.float64)


#: A network in which each kind of node is the last one, or reads the input.
NETWORKS = {
    Dense: graph_on(Dense("n", (0,), (), draw(3, 4), draw(3)), shape=(4,)),
    Conv: graph_on(Conv("n", (0,), (), draw(2, 1, 2), draw(2), (1,), ((1, 0),), (1,), 1, "zeros"), shape=(1, 4)),
    ConvTranspose: graph_on(
        ConvTranspose("n", (0,), (), draw(1, 2, 2), draw(2), (2,), ((0, 0),), (1,), 1), shape=(1, 3)
    ),
    Gather: graph_on(Gather("n", (0,), (3,), torch.tensor([2, 0, 2])), shape=(4,)),
    Elementwise: graph_on(Elementwise("n", (0,), (), activation("crelu")), shape=(4,)),
    Concat: graph_on(Dense("d", (0,), (), draw(3, 4)), Concat("n", (0, 1), (), 0), shape=(4,)),
    Add: graph_on(Dense("d", (0,), (), draw(4, 4)), Add("n", (0, 1), ()), shape=(4,)),
    MaxPool: graph_on(MaxPool("n", (0,), (), (2,), (2,), (0,), (1,)), shape=(2, 4)),
    GroupSort: graph_on(GroupSort("n", (0,), (), 2), shape=(4,)),
    Normalize: graph_on(Normalize("n", (0,), (), 1, 0.1), shape=(4,)),
    Softmax: graph_on(Softmax("n", (0,), (), 0), shape=(4,)),
    Reshape: graph_on(Reshape("n", (0,), (4,)), shape=(2, 2)),
}
