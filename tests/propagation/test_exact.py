"""Intervals and distances on balls against hundreds of digits, at tolerance zero, in float64 and in 24 bits.

In the coarse arithmetic each rounding margin is as large as what the corners of a ball tell apart, see
:mod:`tests.support.coarse`.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from lipbridge import Ball
from lipbridge.activations import slopes
from lipbridge.activations.activation import Component, Term, derive
from lipbridge.activations.registry import activation, activation_names
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
from lipbridge.propagation import adjoint as propagation_adjoint
from lipbridge.propagation import bounds as propagation
from lipbridge.propagation import space as propagation_space
from lipbridge.propagation.bounds import layer_norms, reaches
from lipbridge.rounding import scalars as rounding
from lipbridge.vocabulary import NORMS, Norm
from tests.search.test_search import SMOOTH
from tests.support.coarse import coarse, coarse_arithmetic
from tests.support.many_digits import BITS, numbers, values

#: Far more than what the reference rounds, and nothing beside any margin.
ROOM = 2.0**-250
MODES = ("zeros", "circular", "reflect", "replicate")


@contextmanager
def arithmetic(direction: str | None, worst: str | None = None) -> Iterator[None]:
    """float64 for None, else 24 bits; the margins that are so many units of roundoff grow with the unit."""
    if direction is None:
        yield
        return
    with coarse_arithmetic(direction, worst), pytest.MonkeyPatch.context() as patch:
        grown = rounding.UNIT / 2.0**-53
        known = {"WIDER": slopes.WIDER, "SLACK": slopes.SLACK}
        for module in [m for name, m in sys.modules.items() if name.startswith("lipbridge")]:
            for name, value in known.items():
                if vars(module).get(name) == value:
                    patch.setattr(module, name, value * grown)
        yield


# --- networks of every option ----------------------------------------------------------------------------------------


def bends() -> list[tuple[Component, ...]]:
    """Activations beside the registry's: parameters, kinks away from zero, sums, several components."""
    clip = (Term("relu", 1.0, 1.0, 1.0), Term("relu", -1.0, 1.0, -0.5))
    return [
        ((Term("leaky_relu", parameters=(-1.5,)),),),
        ((Term("leaky_relu", parameters=(2.5,)),),),
        ((Term("elu", 1.5, -0.5, 0.25, (2.0,)),),),
        ((Term("softplus", 1.0, 1.0, 0.0, (3.0,)),),),
        ((Term("abs", 0.75, -2.0, 0.5),),),
        (clip,),
        ((*clip, Term("identity", 0.5, 1.0, -0.125)),),
        ((Term("relu", 3.0, 0.25, -0.375),), (Term("identity"),)),
        ((Term("tanh", -2.0, 0.5, 1.0), Term("relu", 1.0, -1.0, 0.25)),),
        ((Term("sin", 1.0, 3.0, 1.0),), (Term("gelu", -1.0),), clip),
        ((Term("celu", 1.0, 1.0, 0.0, (0.25,)), Term("identity", -1.0)),),
    ]


class Maker:
    """Random nodes whose weights are numbers of 24 bits, with every option drawn."""

    def __init__(self, seed: int) -> None:
        self.random, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.nodes: list[Node] = []

    def weight(self, *shape: int) -> Tensor:
        W = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        kind = self.random.choice(("random", "random", "rows that cancel", "swamped"))
        if kind == "rows that cancel" and shape[-1] > 1:
            W[..., 1] = -W[..., 0] * (1.0 + 2.0**-12)
        if kind == "swamped":
            W = torch.where(torch.rand(shape, generator=self.generator) < 0.7, W * 2.0**-22, W)
        return coarse(W)

    def bias(self, n: int) -> Tensor | None:
        return self.weight(n) * self.random.choice((1.0, 100.0)) if self.random.random() < 0.6 else None

    def add(self, node: Node) -> int:
        """Append a node with the shape of what it gives."""
        sources = [torch.zeros(1, *self.nodes[i].shape, dtype=torch.float64) for i in node.inputs]
        self.nodes.append(replace(node, shape=tuple(evaluate(node, sources).shape[1:])))
        return len(self.nodes) - 1

    def step(self, index: int) -> int:
        shape, draw = self.nodes[index].shape, self.random
        kinds = ["bend", "bend", "bend", "sort", "normalize", "softmax", "gather", "diagonal"]
        kinds += ["conv", "conv", "transposed", "pool", "pool", "turn"] if len(shape) > 1 else ["dense"] * 5
        kind = draw.choice(kinds)
        name, at = f"{kind}{len(self.nodes)}", (index,)
        axes = shape[1:]

        def each(*choices: int) -> tuple[int, ...]:
            return tuple(draw.choice(choices) for _ in axes)

        if kind == "dense":
            m = draw.randint(1, 4)
            return self.add(Dense(name, at, (), self.weight(m, shape[-1]), self.bias(m)))
        if kind == "conv":
            groups = draw.choice([g for g in (1, 2) if shape[0] % g == 0])
            out, kernel, dilation = groups * draw.randint(1, 2), each(1, 2, 3), each(1, 1, 2)
            mode = draw.choice(MODES)
            most = [n - 1 if mode == "reflect" else n for n in axes]
            padding = tuple((draw.randint(0, min(2, m)), draw.randint(0, min(2, m))) for m in most)
            spans = zip(axes, padding, kernel, dilation, strict=True)
            if any(n + sum(pair) < (k - 1) * d + 1 for n, pair, k, d in spans):
                kernel = (1,) * len(axes)
            W, b = self.weight(out, shape[0] // groups, *kernel), self.bias(out)
            return self.add(Conv(name, at, (), W, b, each(1, 1, 2), padding, dilation, groups, mode))
        if kind == "transposed":
            groups = draw.choice([g for g in (1, 2) if shape[0] % g == 0])
            out = groups * draw.randint(1, 2)
            W, b = self.weight(shape[0], out // groups, *each(1, 2, 3)), self.bias(out)
            node = ConvTranspose(name, at, (), W, b, each(1, 2), (), each(1, 2), groups)
            cuts = [(draw.randint(0, 1), draw.choice((0, 1, -1))) for _ in axes]
            lengths = node.spread(shape)
            fits = all(n - sum(cut) >= 1 for n, cut in zip(lengths, cuts, strict=True))
            return self.add(replace(node, padding=tuple(cuts) if fits else ((0, 0),) * len(axes)))
        if kind == "pool":
            kernel, dilation = each(1, 2, 3), each(1, 1, 2)
            padding = tuple(draw.randint(0, k // 2) for k in kernel)
            spans = zip(axes, padding, kernel, dilation, strict=True)
            if any(n + 2 * p < (k - 1) * d + 1 for n, p, k, d in spans):
                kernel, padding, dilation = (1,) * len(axes), (0,) * len(axes), (1,) * len(axes)
            return self.add(MaxPool(name, at, (), kernel, each(1, 2), padding, dilation, draw.random() < 0.5))
        if kind == "diagonal":
            W, ones = self.weight(shape[0], 1), (1,) * len(axes)
            zero = ((0, 0),) * len(axes)
            return self.add(
                Conv(name, at, (), W.reshape(-1, 1, *ones), self.bias(shape[0]), ones, zero, ones, shape[0])
            )
        if kind == "gather":
            index_ = torch.randint(-1, math.prod(shape), (math.prod(shape),), generator=self.generator)
            self.nodes.append(Gather(name, at, shape, index_))
            return len(self.nodes) - 1
        if kind == "sort":
            return self.add(GroupSort(name, at, (), draw.choice([g for g in (1, 2, 3) if shape[0] % g == 0])))
        if kind == "normalize":
            groups = draw.choice((1, shape[0]))
            return self.add(Normalize(name, at, (), groups, draw.choice((1e-5, 0.1, 10.0)), draw.random() < 0.5))
        if kind == "softmax":
            return self.add(Softmax(name, at, (), draw.randrange(len(shape)), draw.random() < 0.5))
        if kind == "turn":
            axes_ = (*range(1, len(shape)), 0)
            return self.add(Reshape(name, at, tuple(shape[i] for i in axes_), axes_))
        components = (
            draw.choice(bends()) if draw.random() < 0.5 else activation(draw.choice(activation_names())).components
        )
        return self.add(Elementwise(name, at, (), derive("bend", components), draw.randrange(len(shape))))

    def flat(self, index: int) -> int:
        node = Reshape(f"flat{len(self.nodes)}", (index,), (math.prod(self.nodes[index].shape),))
        return self.add(node) if len(self.nodes[index].shape) > 1 else index

    def join(self, left: int, right: int) -> int:
        shapes = (self.nodes[left].shape, self.nodes[right].shape)
        name = f"join{len(self.nodes)}"
        if shapes[0] == shapes[1] and self.random.random() < 0.6:
            return self.add(Add(name, (left, right, *([right] if self.random.random() < 0.3 else [])), ()))
        if shapes[0] == shapes[1]:
            return self.add(Concat(name, (left, right), (), self.random.randrange(len(shapes[0]))))
        return self.add(Concat(name, (self.flat(left), self.flat(right)), (), 0))


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


def moved(a: list[Any], b: list[Any], norm: Norm) -> Any:
    sizes = [abs(x - y) for x, y in zip(a, b, strict=True)]
    if norm == 2:
        return mpmath.sqrt(mpmath.fsum(s * s for s in sizes))
    return mpmath.fsum(sizes) if norm == 1 else max(sizes)


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
        for index, reach in enumerate(found):
            lower, upper = reach.lower[k].flatten().tolist(), reach.upper[k].flatten().tolist()
            value, error = reach.center.value[k].flatten().tolist(), reach.center.error[k].flatten().tolist()
            for exact, v, e in zip(at_center[index], value, error, strict=True):
                assert abs(exact - v) <= e, graph.nodes[index]
            for point in points:
                for exact, low, high in zip(point[index], lower, upper, strict=True):
                    room = ROOM * (1 + abs(exact))
                    assert low - room <= exact <= high + room, graph.nodes[index]
                far = moved(point[index], at_center[index], ball.norm)
                assert far * (1 - mpmath.mpf(ROOM)) <= float(reach.distance[k]), graph.nodes[index]


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
            found = reaches(graph, ball, norms, linear=draw.random() < 0.7)
        with mpmath.workprec(BITS):
            require_held(graph, ball, found, seed)


def test_units_that_are_pulled_back_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "LARGEST", 1)
    for seed in (3, 8, 12):
        graph = network(seed)
        ball = Ball(torch.ones(2, *graph.input_shape, dtype=torch.float64), 0.25, 2)
        found = reaches(graph, ball)
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
    found = reaches(graph, ball, linear=False)
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
    found = reaches(graph, ball, linear=False)
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
