"""Graphs of nodes that are given without their shapes."""

from __future__ import annotations

from dataclasses import replace

import torch

from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Input, Node


def graph_on(*nodes: Node, shape: tuple[int, ...]) -> Graph:
    """The nodes on an input of ``shape``; their shapes are filled in."""
    made: list[Node] = [Input("input", (), shape)]
    for node in nodes:
        values = [torch.zeros(1, *made[i].shape, dtype=torch.float64) for i in node.inputs]
        made.append(replace(node, shape=tuple(evaluate(node, values).shape[1:])))
    return Graph(tuple(made))
