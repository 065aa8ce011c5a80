"""Small Graphs of given layers in a line, and normal numbers by seed."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from lipbridge import activation
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Elementwise, Input, Node, Reshape


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(shape: tuple[int, ...], *nodes: Node) -> Graph:
    """Nodes one after the other; their inputs and shapes are found here."""
    made: list[Node] = [Input("input", (), shape)]
    for node in nodes:
        value = evaluate(
            node if isinstance(node, Reshape) else replace(node, shape=()),
            [torch.zeros(1, *made[-1].shape, dtype=torch.float64)],
        )
        made.append(replace(node, inputs=(len(made) - 1,), shape=tuple(value.shape[1:])))
    return Graph(tuple(made))


def flattened(graph: Graph) -> Node:
    return Reshape("flat", (), (math.prod(graph.output_shape),))


def conv(seed: int, out: int, channels: int, kernel=(3, 3), *, bias=True, **geometry) -> Conv:
    axes = len(kernel)
    settings = {"stride": (1,) * axes, "padding": ((1, 1),) * axes, "dilation": (1,) * axes, **geometry}
    W = normal(seed, out, channels // settings.get("groups", 1), *kernel)
    return Conv(f"conv{seed}", (), (), W, normal(seed + 1, out) if bias else None, **settings)


def act(name: str) -> Elementwise:
    return Elementwise(name, (), (), activation(name), 0)
