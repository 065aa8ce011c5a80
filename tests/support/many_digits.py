"""A Graph's values in hundreds of digits: the slow reference for enclosures of single points.

Linear nodes are read as matrices whose entries are weights, or sums of them that are taken exactly, and what orders
entries by their ranks. Sums and products of doubles are exact at this precision unless their sizes are hundreds of
digits apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import mpmath
import torch
from torch import Tensor

from lipbridge.graph.evaluation import evaluate, runs
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
    block_axis,
)

BITS = 300
Numbers = list[Any]


def numbers(x: Tensor) -> Numbers:
    """The entries, flattened."""
    return [mpmath.mpf(value) for value in x.flatten().tolist()]


def values(graph: Graph, x: Sequence[Any], functions: dict[str, Callable[..., Any]]) -> list[Numbers]:
    """The flattened values of all nodes at one input, given by its coordinates; within ``mpmath.workprec(BITS)``."""
    found: list[Numbers] = [list(x)]
    for node in graph.nodes[1:]:
        shapes = [graph.nodes[i].shape for i in node.inputs]
        found.append(_value(node, [found[i] for i in node.inputs], shapes, functions))
    return found


def _value(
    node: Node, inputs: list[Numbers], shapes: list[tuple[int, ...]], functions: dict[str, Callable[..., Any]]
) -> Numbers:
    x, shape = inputs[0], shapes[0]
    if isinstance(node, Dense | Conv | ConvTranspose):
        return _linear(node, x, shape)
    if isinstance(node, Add):
        return [mpmath.fsum(terms) for terms in zip(*inputs, strict=True)]
    if isinstance(node, Concat | Reshape | Gather):
        together = [value for part in inputs for value in part]
        places, start = list[Tensor](), 1
        for part in shapes:
            places.append(torch.arange(start, start + math.prod(part), dtype=torch.float64).reshape(1, *part))
            start += math.prod(part)
        index = evaluate(node, places).flatten().to(torch.int64)
        return [together[i - 1] if i else mpmath.mpf(0) for i in index.tolist()]
    if isinstance(node, MaxPool | GroupSort):
        order = sorted(set(x))
        ranks = torch.tensor([order.index(value) for value in x], dtype=torch.float64).reshape(1, *shape)
        return [order[int(rank)] for rank in evaluate(node, [ranks]).flatten().tolist()]
    if isinstance(node, Elementwise):
        return _bent(node, x, shape, functions)
    index = torch.arange(math.prod(shape)).reshape(1, *shape)
    if isinstance(node, Normalize):
        lines = runs(node, index)[0].tolist()
        return _scattered(lines, [_normalised([x[i] for i in line], node) for line in lines])
    assert isinstance(node, Softmax)
    lines = index[0].movedim(node.axis, -1).reshape(-1, shape[node.axis]).tolist()
    return _scattered(lines, [_softmax([x[i] for i in line], node.log) for line in lines])


def _linear(node: Dense | Conv | ConvTranspose, x: Numbers, shape: tuple[int, ...]) -> Numbers:
    rows, shift = matrix(node, shape)
    return [mpmath.fdot(row, x) + b for row, b in zip(rows, shift, strict=True)]


def matrix(node: Dense | Conv | ConvTranspose, shape: tuple[int, ...]) -> tuple[list[Numbers], list[float]]:
    """Matrix and shift of a linear node on flattened inputs of ``shape``."""
    n = math.prod(shape)
    unit = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
    blank = replace(node, weight=torch.zeros_like(node.weight))
    shift = evaluate(blank, [torch.zeros_like(unit[:1])]).flatten().tolist()
    parts: list[list[list[float]]] = []
    for weight in _taps(node):
        parts.append(evaluate(replace(node, weight=weight, bias=None), [unit]).reshape(n, -1).T.tolist())
    if len(parts) == 1:
        return parts[0], shift
    return [[mpmath.fsum(entries) for entries in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)], shift


def _taps(node: Dense | Conv | ConvTranspose) -> list[Tensor]:
    """The weight, tap by tap where padding lets several taps read one input."""
    if not isinstance(node, Conv) or node.padding_mode == "zeros" or not any(any(pair) for pair in node.padding):
        return [node.weight]
    made: list[Tensor] = []
    for place in itertools.product(*map(range, node.kernel)):
        weight = torch.zeros_like(node.weight)
        weight[(..., *place)] = node.weight[(..., *place)]
        made.append(weight)
    return made


def _bent(node: Elementwise, x: Numbers, shape: tuple[int, ...], functions: dict[str, Callable[..., Any]]) -> Numbers:
    made: Numbers = []
    for component in node.activation.components:
        for t in x:
            terms = (
                mpmath.mpf(term.coefficient) * functions[term.function](term.scale * t + term.offset, *term.parameters)
                for term in component
            )
            made.append(mpmath.fsum(terms))
    parts = torch.arange(len(made)).reshape(node.activation.width, 1, *shape)
    order = torch.cat(list(parts), block_axis(node) + 1).flatten().tolist()
    return [made[i] for i in order]


def _normalised(run: Numbers, node: Normalize) -> Numbers:
    mean = mpmath.fsum(run) / len(run) if node.centred else mpmath.mpf(0)
    centred = [value - mean for value in run]
    deviation = mpmath.sqrt(mpmath.fsum(value**2 for value in centred) / len(run) + mpmath.mpf(node.epsilon))
    return [value / deviation for value in centred]


def _softmax(line: Numbers, log: bool) -> Numbers:
    top = max(line)
    total = mpmath.fsum(mpmath.exp(value - top) for value in line)
    found = [value - top - mpmath.log(total) for value in line]
    return found if log else [mpmath.exp(value) for value in found]


def _scattered(lines: list[list[int]], found: list[Numbers]) -> Numbers:
    made: Numbers = [None] * sum(map(len, lines))
    for line, part in zip(lines, found, strict=True):
        for place, value in zip(line, part, strict=True):
            made[place] = value
    return made
