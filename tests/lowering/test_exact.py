"""Lowerings in exact arithmetic: what is told to be exact is, and no weight is further off than is said."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import mpmath
import pytest
import torch
from torch import Tensor

from lipbridge.activations.activation import Component, Term, derive
from lipbridge.errors import UnsupportedOperation
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Input, Node, Reshape
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.lowering.rewrites import fold_scalings, relu_lowering
from tests.support.functions import SMOOTH
from tests.support.many_digits import BITS, matrix, values

#: Piecewise linear, with factors that are doubles but no powers of two, kinks and shifts anywhere, several blocks.
BENDS: list[tuple[Component, ...]] = [
    ((Term("abs"),),),
    ((Term("relu"),), (Term("relu", 1.0, -1.0),)),
    ((Term("relu", 0.3, -0.7),),),
    ((Term("leaky_relu", 1.5, 0.1, 0.25, (0.3,)),),),
    ((Term("relu", 1.0, 1.0, 1.0), Term("relu", -1.0, 1.0, -0.5)),),
    ((Term("relu", 1.0, 0.3, 1.0), Term("identity", 3.0)), (Term("identity", 1.0, 0.0, 0.7),)),
    ((Term("leaky_relu", 1.0, -1.0, 0.5, (1.0,)), Term("relu", 2.0)),),
    ((Term("identity", 0.1, 3.0, -1.7),),),
    ((Term("identity", 0.3, 0.7), Term("identity", 1.0, 0.2, 0.1)), (Term("identity", -1.0),)),
    ((Term("abs", 1.0, 1.0, 1.0), Term("identity", 3.0)), (Term("abs", 0.5),), (Term("relu", -1.0, -2.0),)),
]


class Maker:
    def __init__(self, seed: int) -> None:
        self.random, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        shape = self.random.choice(((3,), (2,), (2, 4), (1, 2, 3)))
        self.nodes: list[Node] = [Input("input", (), shape)]

    def normal(self, *shape: int) -> Tensor:
        W = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        kind = self.random.choice(("any", "any", "float32", "powers", "tiny"))
        if kind == "float32":
            return W.to(torch.float32).to(torch.float64)
        if kind == "powers":
            return torch.exp2((4 * W).round()) * W.sign()
        return W * 2.0**-1040 if kind == "tiny" and self.random.random() < 0.4 else W

    def add(self, node: Node) -> None:
        source = torch.zeros(1, *self.nodes[-1].shape, dtype=torch.float64)
        node = replace(node, inputs=(len(self.nodes) - 1,), name=f"{type(node).__name__}{len(self.nodes)}")
        self.nodes.append(replace(node, shape=tuple(evaluate(node, [source]).shape[1:])))

    def bend(self) -> None:
        shape = self.nodes[-1].shape
        act = derive("bend", self.random.choice(BENDS))
        self.add(Elementwise("", (), (), act, -1 if len(shape) == 1 else 0))

    def linear(self) -> None:
        shape, draw = self.nodes[-1].shape, self.random
        bias = draw.random() < 0.6
        if len(shape) == 1 or draw.random() < 0.2:
            m = draw.randint(1, 4)
            if len(shape) > 1:
                self.add(Reshape("", (), (math.prod(shape),)))
            n = self.nodes[-1].shape[0]
            self.add(Dense("", (), (), self.normal(m, n), self.normal(m) if bias else None))
            return
        axes = len(shape) - 1
        groups = draw.choice([g for g in (1, 1, 2) if shape[0] % g == 0])
        out, kernel = groups * draw.randint(1, 2), tuple(draw.choice((1, 2)) for _ in range(axes))
        padding = tuple(draw.choice(((0, 0), (0, 1), (2, 1))) for _ in range(axes))
        mode = draw.choice(("zeros", "zeros", "replicate", "circular")) if min(shape[1:]) > 1 else "zeros"
        W, b = self.normal(out, shape[0] // groups, *kernel), self.normal(out) if bias else None
        if draw.random() < 0.3:
            W, padding, groups = self.normal(shape[0], 1, *(1,) * axes), ((0, 0),) * axes, shape[0]
            b = self.normal(shape[0]) if bias else None
        self.add(Conv("", (), (), W, b, (1,) * axes, padding, (1,) * axes, groups, mode))


def network(seed: int) -> Graph:
    make = Maker(seed)
    for _ in range(make.random.randint(1, 3)):
        make.random.choice((make.linear, make.linear, make.bend))()
        make.bend()
    make.linear()
    return Graph(tuple(make.nodes))


def require_same(first: Graph, second: Graph, seed: int) -> None:
    """One function, digit by digit."""
    draw = random.Random(seed)
    with mpmath.workprec(8 * BITS):  # subnormal weights beside ordinary ones
        for _ in range(3):
            x = [mpmath.mpf(draw.choice((0.0, draw.uniform(-3.0, 3.0)))) for _ in range(math.prod(first.input_shape))]
            assert values(first, x, SMOOTH)[-1] == values(second, x, SMOOTH)[-1]


@pytest.mark.parametrize("part", range(4))
def test_what_is_told_to_be_exact_is(part: int) -> None:
    exact = 0
    for seed in range(part, 80, 4):
        graph = network(seed)
        for lower in (relu_lowering, lower_to_dense):
            try:
                found = lower(graph)
            except UnsupportedOperation:  # kernels of relus along other axes
                continue
            if found.exact:
                require_same(graph, found.graph, seed)
                exact += 1
        try:
            careful = relu_lowering(graph, exact=True)
        except UnsupportedOperation:  # products of slopes that are no doubles
            continue
        assert careful.exact
        require_same(graph, careful.graph, seed)
    assert exact > 3


@pytest.mark.parametrize("part", range(2))
def test_no_weight_is_further_off_than_is_said(part: int) -> None:
    """Linear networks of all kinds as one matrix: entry by entry, in exact arithmetic."""
    rounded = 0
    for seed in range(part, 40, 2):
        make = Maker(1000 + seed)
        for _ in range(make.random.randint(1, 3)):
            make.linear()
            act = derive("lines", make.random.choice([bend for bend in BENDS if bend[0][0].function == "identity"]))
            shape = make.nodes[-1].shape
            if make.random.random() < 0.6:
                make.add(Elementwise("", (), (), act, make.random.randrange(len(shape))))
        graph = Graph(tuple(make.nodes))
        lowered = lower_to_dense(graph)
        (place,) = [i for i, node in enumerate(lowered.graph) if isinstance(node, Dense)]
        dense = lowered.graph.nodes[place]
        assert isinstance(dense, Dense)
        error = lowered.errors.get(place)
        rounded += error is not None
        n = math.prod(graph.input_shape)
        with mpmath.workprec(8 * BITS):
            zero = [mpmath.mpf(0)] * n
            shift = values(graph, zero, SMOOTH)[-1]
            for j in range(n):
                unit = [mpmath.mpf(int(i == j)) for i in range(n)]
                column = values(graph, unit, SMOOTH)[-1]
                for i, (at, start) in enumerate(zip(column, shift, strict=True)):
                    off = abs(at - start - float(dense.weight[i, j]))
                    assert off <= (0.0 if error is None else float(error[i, j])), seed
            if lowered.exact:
                rows, bias = matrix(dense, (n,))
                assert bias == shift, seed
                assert len(rows) == len(shift)
    assert rounded > 3


@pytest.mark.parametrize("units", [3, 4])
def test_a_product_that_loses_bits_to_underflow_is_not_told_as_exact(units: int) -> None:
    """A half of three units in the last place of zero is none of them; a power of two is exact elsewhere."""
    weight = torch.full((1, 1), units * 5e-324, dtype=torch.float64)
    half = Elementwise("half", (1,), (1,), derive("half", ((Term("identity", 1.0, 0.5),),)))
    graph = Graph((Input("input", (), (1,)), Dense("layer", (0,), (1,), weight), half))
    lowering = fold_scalings(graph)
    assert lowering.exact == (units == 4)
    assert len(lowering.graph.nodes) == 2


def test_a_shift_before_padded_zeros_stays_in_the_image() -> None:
    """|t| + 1/2 before a convolution: the zeros around the image get no shift."""
    bent = Elementwise("bent", (0,), (1, 4), derive("bent", ((Term("abs"), Term("identity", 1.0, 0.0, 0.5)),)))
    kernel = torch.tensor([[[1.0, 2.0, 4.0]]], dtype=torch.float64)
    graph = Graph((Input("input", (), (1, 4)), bent, Conv("conv", (1,), (1, 4), kernel, None, (1,), ((1, 1),))))
    x = torch.tensor([[[1.0, -2.0, 3.0, -4.0]]], dtype=torch.float64)
    expected = torch.tensor([[[2 * 1.5 + 4 * 2.5, 1.5 + 5.0 + 14.0, 2.5 + 7.0 + 18.0, 3.5 + 9.0]]]).double()
    assert torch.equal(graph(x), expected)
    assert torch.equal(relu_lowering(graph).graph(x), expected)


def test_lines_of_several_terms_keep_their_factors_and_shifts() -> None:
    """3 (t + 1/2) + (2 t + 1/4) and -2 (t - 1): 5 t + 7/4 and -2 t + 2."""
    terms = ((Term("identity", 3.0, 1.0, 0.5), Term("identity", 1.0, 2.0, 0.25)), (Term("identity", -2.0, 1.0, -1.0),))
    lines = Elementwise("lines", (0,), (4,), derive("lines", terms), 0)
    last = Dense("last", (1,), (4,), torch.eye(4, dtype=torch.float64))
    graph = Graph((Input("input", (), (2,)), lines, last))
    x = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    expected = torch.tensor([[6.75, -13.25, 0.0, 8.0]], dtype=torch.float64)
    for lowered in (graph, lower_to_dense(graph).graph, relu_lowering(graph).graph, fold_scalings(graph).graph):
        assert torch.equal(lowered(x), expected)
