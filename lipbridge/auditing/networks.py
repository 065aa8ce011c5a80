"""Small Graphs, node by node: what the families' networks are made of."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.activations.registry import activation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Input, Node, Reshape

#: Rows of numbers, or a matrix.
Numbers = Sequence[Sequence[float]] | Tensor
#: A layer: the name of an activation, or a weight and a bias.
Layer = str | tuple[Numbers, Sequence[float] | Tensor | None]


def matrix(numbers: Numbers | Sequence[float]) -> Tensor:
    """As a float64 tensor."""
    if isinstance(numbers, Tensor):
        return numbers.to(torch.float64)
    return torch.tensor(numbers, dtype=torch.float64)


def chain(*layers: Layer) -> Graph:
    """Dense layers and activations on vectors, one behind the other."""
    first = next(layer for layer in layers if not isinstance(layer, str))
    return behind([Input("input", (), (matrix(first[0]).shape[1],))], *layers)


def behind(nodes: Sequence[Node], *layers: Layer) -> Graph:
    """The nodes, the last of which is a vector, and layers behind them."""
    found = list(nodes)
    for layer in layers:
        place, (width,) = len(found) - 1, found[-1].shape
        if isinstance(layer, str):
            own = activation(layer)
            found.append(Elementwise(f"{layer}{place}", (place,), (width * own.width,), own))
            continue
        weight, bias = matrix(layer[0]), None if layer[1] is None else matrix(layer[1])
        found.append(Dense(f"dense{place}", (place,), (weight.shape[0],), weight, bias))
    return Graph(tuple(found))


def convolutions(
    shape: tuple[int, ...], kernels: Sequence[Tensor], padding: int, mode: str, *, stride: int = 1
) -> list[Node]:
    """Convolutions with relu behind each, flattened at the end."""
    nodes: list[Node] = [Input("input", (), shape)]
    for kernel in kernels:
        place, own = len(nodes) - 1, nodes[-1].shape
        axes = len(own) - 1
        size = [(n + 2 * padding - k) // stride + 1 for n, k in zip(own[1:], kernel.shape[2:], strict=True)]
        made = (kernel.shape[0], *size)
        geometry = ((stride,) * axes, ((padding, padding),) * axes, (1,) * axes)
        nodes.append(Conv(f"conv{place}", (place,), made, kernel, None, *geometry, 1, mode))
        nodes.append(Elementwise(f"relu{place}", (place + 1,), made, activation("relu"), 0))
    place, own = len(nodes) - 1, nodes[-1].shape
    nodes.append(Reshape("flatten", (place,), (int(torch.tensor(own).prod()),)))
    return nodes


def whole(generator: random.Random, m: int, n: int, low: int, high: int, parts: int = 4) -> Tensor:
    """``(m, n)``: whole numbers of quarters (or other parts); the same on every machine."""
    return matrix([[generator.randint(low, high) / parts for _ in range(n)] for _ in range(m)])


__all__ = ["Layer", "behind", "chain", "convolutions", "matrix", "whole"]
