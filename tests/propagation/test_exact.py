"""Intervals and distances on balls against hundreds of digits, at tolerance zero, in float64 and in 24 bits.

In the coarse arithmetic each rounding margin is as large as what the corners of a ball tell apart, see
:mod:`tests.support.coarse`.
"""

from __future__ import annotations

import random
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from lipbridge import Ball
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Conv,
    ConvTranspose,
    Dense,
    Input,
    Node,
)
from lipbridge.propagation import adjoint as propagation_adjoint
from lipbridge.propagation import bounds as propagation
from lipbridge.propagation import space as propagation_space
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.vocabulary import NORMS, Norm
from tests.support.coarse import coarse
from tests.support.exact_propagation import ROOM, Maker, arithmetic, moved
from tests.support.functions import SMOOTH
from tests.support.many_digits import BITS, numbers, values

# --- networks of every option ----------------------------------------------------------------------------------------


def network(seed: int) -> Graph:
    make = Maker(seed)
    shape = make.random.choice(((3,), (5,), (12,), (2, 5), (1, 3, 4), (2, 3, 2)))
    make.nodes.append(Input("input", (), shape))
    index = 0
    for _ in range(make.random.randint(1, 2)):
        root = index
        for _ in range(make.random.randint(1, 3)):
            index = make.step(index)
        if make.random.random() < 0.5:
            index = make.join(index, make.step(root) if make.random.random() < 0.7 else root)
    if len(make.nodes[index].shape) == 1 and make.random.random() < 0.7:
        index = make.step(index)
    return Graph(tuple(make.nodes))


# --- the corners of a ball -------------------------------------------------------------------------------------------


def corners(gradient: Tensor, radius: float, norm: Norm) -> list[Any]:
    """The move in the ball along which a function of this gradient rises most."""
    g = numbers(gradient)
    if norm == "inf":
        return [radius * mpmath.sign(x) for x in g]
    if norm == 1:
        largest = max(range(len(g)), key=lambda i: abs(g[i]))
        return [radius * mpmath.sign(x) if i == largest else mpmath.mpf(0) for i, x in enumerate(g)]
    length = mpmath.sqrt(mpmath.fsum(x * x for x in g))
    if not length:
        return [mpmath.mpf(0) for _ in g]
    return [radius * x / length * (1 - mpmath.mpf(ROOM)) for x in g]


def require_held(graph: Graph, ball: Ball, found: list[Any], seed: int) -> None:
    """The values of all nodes at corners of the balls, chosen by the gradients of units, are in what was found."""
    draw = random.Random(seed)
    for k, center in enumerate(ball.centers):
        x = center.clone().requires_grad_()
        units = [value.flatten() for value in graph.values(x[None])[1:]]
        flat = torch.cat(units)
        chosen = draw.sample(range(len(flat)), min(5, len(flat)))
        moves = []
        for unit in chosen:
            (gradient,) = torch.autograd.grad(flat[unit], x, retain_graph=True, allow_unused=True)
            gradient = torch.zeros_like(x) if gradient is None else gradient
            move = corners(gradient.nan_to_num(0.0), ball.radius, ball.norm)
            moves += [move, [-step for step in move]]
        middle = numbers(center)
        at_center = values(graph, middle, SMOOTH)
        points = [at_center] + [
            values(graph, [a + b for a, b in zip(middle, move, strict=True)], SMOOTH) for move in moves
        ]
        for index, node_bounds in enumerate(found):
            lower, upper = node_bounds.lower[k].flatten().tolist(), node_bounds.upper[k].flatten().tolist()
            value, error = (
                node_bounds.center.value[k].flatten().tolist(),
                node_bounds.center.error[k].flatten().tolist(),
            )
            for exact, v, e in zip(at_center[index], value, error, strict=True):
                assert abs(exact - v) <= e, graph.nodes[index]
            for point in points:
                for exact, low, high in zip(point[index], lower, upper, strict=True):
                    room = ROOM * (1 + abs(exact))
                    assert low - room <= exact <= high + room, graph.nodes[index]
                far = moved(point[index], at_center[index], ball.norm)
                assert far * (1 - mpmath.mpf(ROOM)) <= float(node_bounds.distance[k]), graph.nodes[index]


@pytest.mark.parametrize("direction", [None, "zero", "away", "nearest"])
def test_no_exact_value_is_outside(direction: str | None) -> None:
    for seed in range({None: 0, "zero": 1, "away": 2, "nearest": 3}[direction], 48, 4):
        graph = network(seed)
        draw = random.Random(seed)
        norm, radius = draw.choice(NORMS), draw.choice((2.0**-30, 2.0**-10, 0.125, 2.0))
        generator = torch.Generator().manual_seed(seed)
        centers = coarse(torch.randn(2, *graph.input_shape, generator=generator, dtype=torch.float64))
        ball = Ball(centers, radius, norm)
        with arithmetic(direction):
            norms = layer_norms(graph, norm) if draw.random() < 0.5 else None
            found = forward_bounds(graph, ball, norms, linear=draw.random() < 0.7)
        with mpmath.workprec(BITS):
            require_held(graph, ball, found, seed)


def test_units_that_are_pulled_back_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "LARGEST", 1)
    for seed in (3, 8, 12):
        graph = network(seed)
        ball = Ball(torch.ones(2, *graph.input_shape, dtype=torch.float64), 0.25, 2)
        found = forward_bounds(graph, ball)
        with mpmath.workprec(BITS):
            require_held(graph, ball, found, seed)


@pytest.mark.parametrize("branches", [False, True])
def test_long_sums_of_what_is_pulled_back_keep_what_each_addition_loses(branches: bool) -> None:
    """Forty addends below the last place of what they are added to: biases of a chain, or weights of branches."""
    one, small = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.875 * 2.0**-24]], dtype=torch.float64)
    count = 40
    nodes: list[Node] = [Input("input", (), (1,))]
    if branches:
        nodes += [Dense(f"{i}", (0,), (1,), small if i < count else one) for i in range(count + 1)]
        nodes.append(Add("sum", tuple(range(1, count + 2)), (1,)))
    else:
        nodes += [Dense(f"{i}", (i,), (1,), one, small[0] if i < count else one[0]) for i in range(count + 1)]
    graph, center = Graph(tuple(nodes)), float(branches)
    ball = Ball(torch.full((1, 1), center, dtype=torch.float64), 2.0**-40, 2)
    found = forward_bounds(graph, ball, linear=False)
    with arithmetic("zero"):
        ends = propagation._form_ends(graph, len(nodes) - 1, one[None], found, {}, ball)
    assert ends is not None
    true = 1.0 + count * float(small)  # exact in float64
    assert float(ends[0]) <= true <= float(ends[1])
    assert float(ends[1]) - float(ends[0]) < 0.01


def test_a_form_of_many_inputs_keeps_what_its_value_at_the_centre_loses() -> None:
    one, row = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 64, dtype=torch.float64)
    graph = Graph((Input("input", (), (64,)), Dense("sum", (0,), (1,), row)))
    ball = Ball(row, 2.0**-40, "inf")
    found = forward_bounds(graph, ball, linear=False)
    with arithmetic("zero", "low"):
        ends = propagation._form_ends(graph, 1, one[None], found, {}, ball)
    assert ends is not None
    assert float(ends[0]) <= 64.0 <= float(ends[1])


@pytest.mark.parametrize("norm", [1, 2])
def test_norms_of_the_rows_of_a_transposed_convolution_are_rounded_up(norm: Norm) -> None:
    node = ConvTranspose("up", (0,), (1, 1), torch.ones(64, 1, 1, dtype=torch.float64), None, (1,), ((0, 0),), (1,))
    with arithmetic("zero", "low"):
        found = propagation_adjoint._row_norms_up(node, (64, 1), norm)
    assert float(found) >= (64.0 if norm == 1 else 8.0)


@pytest.mark.parametrize("norm", [1, 2])
def test_norms_of_the_rows_of_a_convolution_are_rounded_up(norm: Norm) -> None:
    node = Conv("down", (0,), (1, 1), torch.ones(1, 64, 1, dtype=torch.float64), None, (1,), ((0, 0),), (1,), 1)
    with arithmetic("zero", "low"):
        found = propagation_space._row_norms_up(node, (64, 1), norm)
    assert float(found) >= (64.0 if norm == 1 else 8.0)
