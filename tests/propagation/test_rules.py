"""Each rule of the intervals by itself, on boxes drawn for it: exact extremes are inside, at tolerance zero.

Sums are off by all that the standard model of rounding permits, in 24 bits (see :mod:`tests.support.coarse`), so that
a rule which leaves out a margin is caught by its own boxes, where no other rule could make up for it.
"""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import mpmath
import pytest
import torch
from torch import Tensor

from lipbridge.activations.activation import derive
from lipbridge.activations.registry import activation
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import (
    Add,
    Conv,
    ConvTranspose,
    Dense,
    Elementwise,
    Input,
    MaxPool,
    Node,
)
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import _form_ends
from lipbridge.propagation.rules import (
    DUAL,
    Context,
    LinearRelaxation,
    NodeBounds,
    back_substitute,
    halves,
    linear_relaxation,
    narrowed,
    node_bounds,
    norm_up,
)
from lipbridge.rigor.running_error import Enclosure
from lipbridge.vocabulary import NORMS, Norm
from tests.support.coarse import coarse
from tests.support.exact_propagation import ROOM, Boxes, arithmetic, bends, linear_node, moved, nonlinear_node
from tests.support.functions import SMOOTH
from tests.support.many_digits import BITS, matrix, numbers, values

ARITHMETICS: list[tuple[str | None, str | None]] = [
    (None, None),
    ("zero", None),
    ("away", None),
    *(("nearest", worst) for worst in ("low", "high", "mixed")),
]
every_arithmetic = pytest.mark.parametrize(("direction", "worst"), ARITHMETICS)


def alone(make: Boxes, node: Node) -> Node:
    return make.nodes[make.add(node)]


def extremes(row: list[Any], low: list[Any], high: list[Any]) -> tuple[Any, Any]:
    """The least and the largest value of a linear function on a box."""
    ends = [sorted((w * a, w * b)) for w, a, b in zip(row, low, high, strict=True)]
    return mpmath.fsum(end[0] for end in ends), mpmath.fsum(end[1] for end in ends)


def dual_norm(row: list[Any], norm: Norm) -> Any:
    return moved(row, [mpmath.mpf(0)] * len(row), DUAL[norm])


@every_arithmetic
def test_linear_layers_on_boxes_and_on_balls(direction: str | None, worst: str | None) -> None:
    for seed, known in itertools.product(range(10), ("box", "distance")):
        make, node = linear_node(seed)
        shape, norm = make.nodes[0].shape, make.random.choice(NORMS)
        x = make.box(shape, norm, known=known)
        with arithmetic(direction, worst):
            found = node_bounds(node, [x], Context(norm))
        with mpmath.workprec(BITS):
            rows, shift = matrix(node, shape)
            for k in range(2):
                lower, upper = numbers(found.lower[k]), numbers(found.upper[k])
                low, high = numbers(x.lower[k]), numbers(x.upper[k])
                value, error = numbers(x.center.value[k]), numbers(x.center.error[k])
                for i, (row, b) in enumerate(zip(rows, shift, strict=True)):
                    if known == "box":
                        least, most = extremes(row, low, high)
                    else:
                        least, most = extremes(
                            row,
                            [v - e for v, e in zip(value, error, strict=True)],
                            [v + e for v, e in zip(value, error, strict=True)],
                        )
                        room = mpmath.mpf(float(x.distance[k])) * dual_norm(row, norm) * (1 - mpmath.mpf(ROOM))
                        least, most = least - room, most + room
                    assert lower[i] <= least + b, (seed, node)
                    assert most + b <= upper[i], (seed, node)


@every_arithmetic
def test_sums(direction: str | None, worst: str | None) -> None:
    for seed in range(8):
        make = Boxes(seed)
        count = make.random.randint(2, 12)
        boxes = [make.box((5,), 2, known="box") for _ in range(count)]
        with arithmetic(direction, worst):
            found = node_bounds(Add("add", tuple(range(count)), (5,)), boxes, Context(2))
        with mpmath.workprec(BITS):
            for k in range(2):
                for i in range(5):
                    assert float(found.lower[k, i]) <= mpmath.fsum(float(x.lower[k, i]) for x in boxes)
                    assert float(found.upper[k, i]) >= mpmath.fsum(float(x.upper[k, i]) for x in boxes)


@every_arithmetic
def test_norms_of_rows_and_halves_of_intervals(direction: str | None, worst: str | None) -> None:
    for seed, norm in itertools.product(range(6), NORMS):
        make = Boxes(seed)
        x = make.box((make.random.choice((1, 5, 60)),), norm, 3)
        rows = x.upper.abs()
        with arithmetic(direction, worst):
            found, (middle, radius) = norm_up(rows, norm), halves(x)
        with mpmath.workprec(BITS):
            for k in range(3):
                exact = moved(numbers(rows[k]), [0] * rows.shape[1], norm)
                assert exact * (1 - mpmath.mpf(ROOM)) <= float(found[k])
                for m, r, low, high in zip(*(numbers(t[k]) for t in (middle, radius, x.lower, x.upper)), strict=True):
                    assert m - r <= low <= high <= m + r


@every_arithmetic
def test_what_is_known_together_is_kept(direction: str | None, worst: str | None) -> None:
    """The intervals and the distance after a further interval, for any true centre within its error."""
    for seed, norm in itertools.product(range(8), NORMS):
        make = Boxes(seed)
        known = make.random.choice(("both", "box", "distance"))
        x = make.box((3,), norm, known=known)
        further = make.box((3,), norm)
        lower, upper = x.center.value - (further.upper - further.lower), x.center.value + x.center.error * 3.0
        lower, upper = coarse(torch.minimum(lower, x.center.value - x.center.error)), coarse(upper)
        with arithmetic(direction, worst):
            found = narrowed(x, lower, upper, Context(norm))
        with mpmath.workprec(BITS):
            for k in range(2):
                value, error = numbers(x.center.value[k]), numbers(x.center.error[k])
                low = [max(a, b) for a, b in zip(numbers(x.lower[k]), numbers(lower[k]), strict=True)]
                high = [min(a, b) for a, b in zip(numbers(x.upper[k]), numbers(upper[k]), strict=True)]
                distance = mpmath.mpf(float(x.distance[k]))
                for i in range(3):  # a value that is allowed by all of these stays allowed
                    for end, side in ((low, -1), (high, 1)):
                        centre = value[i] + side * error[i]
                        at = max(min(end[i], centre + distance), centre - distance)
                        if low[i] <= at <= high[i]:
                            assert float(found.lower[k, i]) <= at <= float(found.upper[k, i])
                spans = []
                for i in range(3):
                    nearest = [max(value[i] - error[i], low[i]), min(value[i] + error[i], high[i])]
                    spans.append(max(high[i] - nearest[0], nearest[1] - low[i]))
                far = moved(spans, [0] * 3, norm)
                assert min(far, distance) * (1 - mpmath.mpf(ROOM)) <= float(found.distance[k])


def places(low: Any, high: Any) -> list[Any]:
    return [low + (high - low) * mpmath.mpf(j) / 8 for j in range(9)]


@every_arithmetic
def test_activations_and_the_lines_around_them(direction: str | None, worst: str | None) -> None:
    for seed, components in enumerate(bends()):
        make = Boxes(seed)
        row = derive("bend", components)
        node = Elementwise("bend", (0,), (4 * row.width,), row)
        z = make.box((4,), 2, known="box")
        with arithmetic(direction, worst):
            found, lines = node_bounds(node, [z], Context(2)), linear_relaxation(node, z)
        graph = Graph((Input("x", (), (1,)), Elementwise("bend", (0,), (row.width,), row)))
        with mpmath.workprec(BITS):
            for k, i in itertools.product(range(2), range(4)):
                for t in places(mpmath.mpf(float(z.lower[k, i])), mpmath.mpf(float(z.upper[k, i]))):
                    exact = values(graph, [t], SMOOTH)[1]
                    for j, line in enumerate(lines):
                        place = 4 * j + i
                        assert float(found.lower[k, place]) <= exact[j] <= float(found.upper[k, place])
                        slope, offset, radius = (
                            mpmath.mpf(float(p[k, i])) for p in (line.slope, line.offset, line.radius)
                        )
                        assert abs(exact[j] - slope * t - offset) <= radius


def forms(make: Boxes, node: Node) -> Tensor:
    k = make.random.choice((1, 2))
    form = make.normal(k, 3, math.prod(node.shape))
    form[:, 2] = torch.where(form[:, 2] > 0.5, 1.0, 0.0)
    return coarse(form)


@every_arithmetic
def test_forms_of_linear_layers_are_pulled_back(direction: str | None, worst: str | None) -> None:
    for seed in range(100, 112):
        make, node = linear_node(seed)
        shape = make.nodes[0].shape
        x, form = make.box(shape, 2), forms(make, node)
        with arithmetic(direction, worst):
            found = back_substitute(node, form, [x], [])
        with mpmath.workprec(BITS):
            rows, shift = matrix(node, shape)
            columns = list(zip(*rows, strict=True))
            for k, m in itertools.product(range(2), range(3)):
                own = min(k, len(form) - 1)
                F, part = numbers(form[own, m]), numbers(found.parts[0][own, m])
                rest = [mpmath.fdot(F, column) - p for column, p in zip(columns, part, strict=True)]
                constant = mpmath.fdot(F, shift) - float(found.offset[min(k, len(found.offset) - 1), m])
                ends = extremes(rest, numbers(x.lower[k]), numbers(x.upper[k]))
                error = float(found.error[min(k, len(found.error) - 1), m])
                assert max(abs(end + constant) for end in ends) <= error, (seed, node)


@every_arithmetic
def test_forms_of_nonlinear_layers_are_pulled_back(direction: str | None, worst: str | None) -> None:
    for seed in range(200, 214):
        make, node = nonlinear_node(seed)
        shape = make.nodes[0].shape
        x, form = make.box(shape, 2), forms(make, node)
        with arithmetic(direction, worst):
            lines = linear_relaxation(node, x) if isinstance(node, Elementwise) else []
            found = back_substitute(node, form, [x], lines)
        graph = Graph((make.nodes[0], node))
        draw = random.Random(seed)
        with mpmath.workprec(BITS):
            for k, _ in itertools.product(range(2), range(4)):
                ends = list(zip(numbers(x.lower[k]), numbers(x.upper[k]), strict=True))
                point = [draw.choice((low, high, (low + high) / 2)) for low, high in ends]
                y = values(graph, point, SMOOTH)[1]
                for m in range(3):
                    own = min(k, len(form) - 1)
                    F, part = numbers(form[own, m]), numbers(found.parts[0][min(k, len(found.parts[0]) - 1), m])
                    offset = float(found.offset[min(k, len(found.offset) - 1), m])
                    error = float(found.error[min(k, len(found.error) - 1), m])
                    gap = abs(mpmath.fdot(F, y) - mpmath.fdot(part, point) - offset)
                    assert gap * (1 - mpmath.mpf(ROOM)) <= error, (seed, node)


def test_an_error_that_vanishes_beside_the_distance_counts() -> None:
    """The end of an interval near zero is known far better than the two numbers whose sum is its room."""
    value, error, far = torch.ones(1, 1, dtype=torch.float64), 0.9 * 2.0**-54, 1.0 + 2.0**-50
    infinite = torch.full_like(value, math.inf)
    x = NodeBounds(-infinite, infinite, Enclosure(value, value * error), value.flatten() * far)
    found = narrowed(x, -infinite, infinite, Context(2))
    with mpmath.workprec(BITS):
        assert float(found.lower) <= 1 - mpmath.mpf(error) - far


def about_zero(n: int, width: float) -> NodeBounds:
    """``n`` values within ``width`` of zero, of whose distance from the centre nothing is known."""
    zero = torch.zeros(1, n, dtype=torch.float64)
    known = Enclosure(zero, torch.zeros_like(zero))
    return NodeBounds(zero - width, zero + width, known, torch.full((1,), math.inf, dtype=torch.float64))


@pytest.mark.parametrize("worst", ["low", "high"])
def test_a_sum_of_many_terms_of_one_sign_counts_its_rounding(worst: str) -> None:
    """The bias alone, or the radii alone: no other margin is there to make up for a missing one."""
    n = 60
    W = torch.ones(1, n, dtype=torch.float64)
    bias = torch.ones(1, dtype=torch.float64)
    with arithmetic("nearest", worst):
        shifted = node_bounds(Dense("d", (0,), (1,), W, bias), [about_zero(n, 0.0)], Context("inf"))
        spread = node_bounds(Dense("d", (0,), (1,), W), [about_zero(n, 1.0)], Context("inf"))
    assert float(shifted.lower) <= 1.0 <= float(shifted.upper)
    assert float(spread.lower) <= -n <= n <= float(spread.upper)
    assert float(spread.upper) <= n * 1.01


@pytest.mark.parametrize("worst", ["low", "high"])
def test_a_form_of_many_biases_counts_its_rounding(worst: str) -> None:
    n = 60
    bias = torch.ones(n, dtype=torch.float64)
    kernel = torch.zeros(1, n, 1, dtype=torch.float64)
    nodes: list[tuple[Node, int]] = [
        (Dense("d", (0,), (n,), torch.zeros(n, 1, dtype=torch.float64), bias), n),
        (Conv("c", (0,), (n, 1), kernel.transpose(0, 1), bias, (1,), ((0, 0),), (1,), 1), n),
        (ConvTranspose("t", (0,), (n, 1), kernel, bias, (1,), ((0, 0),), (1,), 1), n),
        (Conv("c", (0,), (1, n), kernel[:, :1], bias[:1], (1,), ((0, 0),), (1,), 1), n),
        (ConvTranspose("t", (0,), (1, n), kernel[:, :1], bias[:1], (1,), ((0, 0),), (1,), 1), n),
    ]
    for node, size in nodes:
        read = (1,) if isinstance(node, Dense) else (1, node.shape[1])
        zero = torch.zeros(1, *read, dtype=torch.float64)
        x = NodeBounds(zero, zero, Enclosure(zero, zero), torch.zeros(1, dtype=torch.float64))
        with arithmetic("nearest", worst):
            found = back_substitute(node, torch.ones(1, 1, size, dtype=torch.float64), [x], [])
        assert abs(float(found.offset) - n) <= float(found.error) <= 0.01 * n, node


def on_lines(
    n: int, size: float, slope: float, offset: float, radius: float
) -> tuple[Graph, NodeBounds, list[LinearRelaxation]]:
    """An activation of ``n`` inputs of this size, and lines around it that are the same for each unit."""
    zero = torch.zeros(1, n, dtype=torch.float64)
    graph = Graph((Input("x", (), (n,)), Elementwise("g", (0,), (n,), activation("tanh"))))
    x = NodeBounds(zero - size, zero + size, Enclosure(zero, zero), torch.full((1,), size, dtype=torch.float64))
    return graph, x, [LinearRelaxation(zero + slope, zero + offset, zero + radius)]


@pytest.mark.parametrize("worst", ["low", "high"])
def test_a_form_of_many_activations_counts_its_rounding(worst: str) -> None:
    n = 200
    form = torch.ones(1, 1, n, dtype=torch.float64)
    graph, x, lines = on_lines(n, 1.0, 0.0, 1.0, 0.0)
    with arithmetic("nearest", worst):
        found = back_substitute(graph.nodes[1], form, [x], lines)
    assert abs(float(found.offset) - n) <= float(found.error) <= 0.01 * n
    # The radii are all that is left of the form: they are added up to no less than they are.
    graph, x, lines = on_lines(n, 1.0, 0.0, 0.0, 1.0)
    ball = Ball(torch.zeros(1, n, dtype=torch.float64), 2.0**-40, "inf")
    with arithmetic("nearest", worst):
        ends = _form_ends(graph, 1, form, [x], {1: lines}, ball)
    assert ends is not None
    assert float(ends[0]) <= -n <= n <= float(ends[1]) <= n * 1.01


def test_a_product_of_a_form_and_a_slope_counts_its_rounding() -> None:
    """(1 + 2^-12)^2 takes 25 bits."""
    factor = 1.0 + 2.0**-12
    graph, x, lines = on_lines(1, 4.0, factor, 0.0, 0.0)
    with arithmetic("zero"):
        found = back_substitute(graph.nodes[1], torch.full((1, 1, 1), factor, dtype=torch.float64), [x], lines)
    assert 4.0 * abs(factor**2 - float(found.parts[0])) <= float(found.error) <= 2.0**-10


@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_a_maximum_is_an_entry_and_what_another_may_exceed_it_by(shift: float) -> None:
    """Two entries in [0, 1]: the maximum less either of them runs through [0, 1]."""
    node = MaxPool("m", (0,), (1, 1), (2,), (2,))
    low = torch.full((1, 1, 2), shift, dtype=torch.float64)
    nothing = torch.full((1,), math.inf, dtype=torch.float64)
    x = NodeBounds(low, low + 1.0, Enclosure(low, 0.0 * low), nothing)
    found = back_substitute(node, torch.ones(1, 1, 1, dtype=torch.float64), [x], [])
    assert sorted(found.parts[0].flatten().tolist()) == [0.0, 1.0]
    offset, error = float(found.offset), float(found.error)
    assert offset - error <= 0.0 <= 1.0 <= offset + error
    assert offset - error >= -1e-12
    assert offset + error <= 1.0 + 1e-12
