"""Rows that were stacked for tools that know fewer operations, as the joint activation that they stand for.

``relu([W; -W] x + [b; -b])`` is crelu on ``W x + b``, and ``[V V] crelu(z)`` is ``V |z|``: both exact, and both with a
smaller bound. ``sin([W; W] x + [b; b + pi/2])`` is (sin, cos) on ``W x + b``, which our own emitter writes so, with
each shift rounded to float32; where every one is exactly that rounding the pair is read as the cosine it was written
for, in files of ours alone. So is an activation whose constants are float32 roundings of a registered one's.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lipbridge.activations import Activation, Term, activation, activation_names, recognise
from lipbridge.graph import Dense, Elementwise, Graph, Node


def join_stacked_rows(graph: Graph, *, ours: bool) -> Graph:
    """The same function with its stacked rows joined.

    Args:
        graph: as the file has it.
        ours: whether the file says that lipbridge wrote it, see above.
    """
    nodes = list(graph.nodes)
    readers = [0] * len(nodes)
    for node in nodes:
        for source in node.inputs:
            readers[source] += 1
    for index, node in enumerate(nodes):
        if ours and isinstance(node, Elementwise):
            nodes[index] = node = replace(node, activation=_before_rounding(node.activation))
        if not (isinstance(node, Elementwise) and len(node.shape) == 1 and node.activation.width == 1):
            continue
        source = node.inputs[0]
        layer = nodes[source]
        if isinstance(layer, Dense) and layer.shape == node.shape and readers[source] == 1:
            joint = _joint(layer, node.activation, ours)
            if joint is not None:
                nodes[source] = _first_half(layer)
                nodes[index] = replace(node, activation=joint)
    return Graph(_absolute(nodes, readers), graph.name)


def _before_rounding(act: Activation) -> Activation:
    """The registered activation that float32 made this one of."""
    for name in activation_names():
        known = activation(name)
        rounded = tuple(tuple(_rounded(term) for term in component) for component in known.components)
        if rounded != known.components and recognise(rounded).components == act.components:
            return known
    return act


def _rounded(term: Term) -> Term:
    coefficient, scale, offset = (float(np.float32(x)) for x in (term.coefficient, term.scale, term.offset))
    return replace(term, coefficient=coefficient, scale=scale, offset=offset)


def _joint(layer: Dense, act: Activation, ours: bool) -> Activation | None:
    m = layer.weight.shape[0]
    if m % 2 or act.name not in ("relu", "sin"):
        return None
    bias, half = _bias(layer), m // 2
    W, V, b, c = layer.weight[:half], layer.weight[half:], bias[:half], bias[half:]
    if act.name == "relu":
        return activation("crelu") if bool((V == -W).all()) and bool((c == -b).all()) else None
    shifted = (b + math.pi / 2).to(torch.float32).to(torch.float64)
    return activation("sincos") if ours and bool((V == W).all()) and bool((c == shifted).all()) else None


def _bias(layer: Dense) -> Tensor:
    return torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias


def _first_half(layer: Dense) -> Dense:
    m = layer.weight.shape[0] // 2
    bias = None if layer.bias is None else layer.bias[:m]
    return replace(layer, shape=(m,), weight=layer.weight[:m], bias=bias)


def _absolute(nodes: list[Node], readers: list[int]) -> tuple[Node, ...]:
    """``[V V] crelu`` as ``V abs``."""
    for index, node in enumerate(nodes):
        if not isinstance(node, Dense) or len(node.shape) != 1:
            continue
        pair = nodes[node.inputs[0]]
        if not isinstance(pair, Elementwise) or pair.activation.name != "crelu" or len(pair.shape) != 1:
            continue
        n = node.weight.shape[1] // 2
        if readers[node.inputs[0]] == 1 and bool((node.weight[:, :n] == node.weight[:, n:]).all()):
            nodes[node.inputs[0]] = replace(pair, shape=(n,), activation=activation("abs"))
            nodes[index] = replace(node, weight=node.weight[:, :n])
    return tuple(nodes)


__all__ = ["join_stacked_rows"]
