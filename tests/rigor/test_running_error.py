"""Running errors hold: coarse evaluations stay within what they state of the same evaluations in float64."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from lipbridge.activations.activation import Term, derive
from lipbridge.activations.registry import activation, activation_names
from lipbridge.graph.evaluation import evaluate
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Elementwise, GroupSort, Node, Normalize, Softmax
from lipbridge.rigor.running_error import Enclosure, divided, enclosed, mean_product, normalized
from lipbridge.rigor.tangent_error import Tangent, _side_is_certain, enclose_tangent, enclosed_tangent
from tests.support.coarse import coarse, coarse_arithmetic
from tests.support.dags import dag
from tests.support.exact_propagation import bends, linear_node, nonlinear_node

ARITHMETICS = [("zero", "low"), ("zero", "high"), ("away", "mixed")]


def coarsened(graph: Graph) -> Graph:
    """The graph with weights and biases that the coarse arithmetic holds exactly, and neither huge nor tiny."""
    for node in graph.nodes:
        for name in ("weight", "bias"):
            values = getattr(node, name, None)
            if isinstance(values, Tensor):
                values.copy_(
                    coarse(torch.where((values.abs() > 1e9) | (values.abs() < 1e-9), 0.75 * values.sign(), values))
                )
    return graph


def holds(coarsely: Enclosure, finely: Enclosure) -> Tensor:
    """Whether the exact value may lie in both enclosures, entry by entry."""
    return (coarsely.value - finely.value).abs() <= coarsely.error + finely.error


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=str)
def test_values_and_tangents_of_every_node_stay_within_their_errors(arithmetic):
    tangents = 0
    for seed in range(60):
        graph = coarsened(dag(seed))
        generator = torch.Generator().manual_seed(seed)
        x, v = (coarse(torch.randn(3, *graph.input_shape, dtype=torch.float64, generator=generator)) for _ in range(2))
        x[1], x[2] = x[1].abs(), coarse(8.0 * x[2])
        fine = enclose_tangent(graph, x, v)
        with coarse_arithmetic(*arithmetic):
            found = enclose_tangent(graph, x, v)
        assert bool(holds(found.primal, fine.primal).all()), seed
        assert bool((fine.sound | ~found.sound).all()), seed
        tangents += int(found.sound.sum())
        assert bool(holds(found.tangent, fine.tangent)[found.sound].all()), seed
    assert tangents > 60


def corners(x: Enclosure) -> Iterator[Tensor]:
    """All values at the ends of what is known of the last axis."""
    for signs in itertools.product((-1.0, 1.0), repeat=x.value.shape[-1]):
        yield x.value + x.error * torch.tensor(signs, dtype=torch.float64)


def known(values: list[float], errors: list[float]) -> Enclosure:
    return Enclosure(torch.tensor([values], dtype=torch.float64), torch.tensor([errors], dtype=torch.float64))


def test_products_and_quotients_of_what_is_known_within_an_error() -> None:
    a, b = known([1.0, -2.0], [0.5, 0.25]), known([4.0, -3.0], [0.25, 0.5])
    mean, ratio = mean_product(a, b), divided(a, known([4.0, 3.0], [0.25, 0.5]), 1.0)
    for x in corners(a):
        for y in corners(b):
            assert abs(float((x * y).mean() - mean.value)) <= float(mean.error)
            assert bool(((x / y.abs() - ratio.value).abs() <= ratio.error).all())
    assert float(mean.error) < 2.5
    assert float(ratio.error.max()) < 0.5


def test_a_mean_of_many_products_counts_its_rounding() -> None:
    n = 60
    for worst in ("low", "high"):
        ones = Enclosure(torch.ones(1, n, dtype=torch.float64), torch.zeros(1, n, dtype=torch.float64))
        with coarse_arithmetic("nearest", worst):
            found = mean_product(ones, ones)
        assert abs(float(found.value) - 1.0) <= float(found.error) <= 1e-3
    third = known([1.0 + 2.0**-12], [0.0])  # one product, whose square takes 25 bits
    with coarse_arithmetic("zero"):
        found = mean_product(third, third)
    assert abs(float(found.value) - (1.0 + 2.0**-12) ** 2) <= float(found.error) <= 1e-5


def test_the_deviation_of_what_is_known_within_an_error() -> None:
    x = known([0.0, 1.0, 3.0], [0.25, 0.5, 0.125])
    node = Normalize("n", (0,), (3,), 1, 1e-5)
    found = normalized(node, x)
    for point in corners(x):
        deviation = (point.var(correction=0) + 1e-5).sqrt()
        assert abs(float(found.deviation.value) - float(deviation)) <= float(found.deviation.error)
        inside = (found.normal.value - (point - point.mean()) / deviation).abs() <= found.normal.error
        assert bool(inside.all())


def every_node() -> list[tuple[Node, tuple[int, ...]]]:
    """Nodes of every kind and option, and every activation, with the shape of what they read."""
    found: list[tuple[Node, tuple[int, ...]]] = []
    for seed in range(300, 340):
        for make, node in (linear_node(seed), nonlinear_node(seed)):
            found.append((node, tuple(make.nodes[node.inputs[0]].shape)))
    activations = [activation(name) for name in activation_names()] + [derive("g", terms) for terms in bends()]
    found += [(Elementwise("g", (0,), (6 * g.width,), g), (6,)) for g in activations]
    found += [
        (GroupSort("s", (0,), (6,), 3), (6,)),
        (Softmax("p", (0,), (5,)), (5,)),
        (Softmax("l", (0,), (5,), 0, True), (5,)),
    ]
    return found


@pytest.mark.parametrize("width", [2.0**-2, 2.0**-6])
def test_values_and_tangents_of_every_node_move_as_what_it_reads(width: float) -> None:
    """A value anywhere within the error of the node's input gives one within the error of its output."""
    generator = torch.Generator().manual_seed(0)
    sound, tight = 0, 0
    for node, shape in every_node():
        draw = lambda *size: torch.randn(*size, *shape, generator=generator, dtype=torch.float64)  # noqa: E731, B023
        x, v = draw(4), draw(4)
        x_error, v_error = width * draw(4).abs(), width * draw(4).abs()
        known, tangent = Enclosure(x, x_error), Enclosure(v, v_error)
        given = Tangent(known, tangent, torch.ones_like(x), torch.ones(4, dtype=torch.bool))
        value, along = enclosed(node, [known]), enclosed_tangent(node, [given])
        sound += int(along.sound.sum())
        for _ in range(24):
            at, by = (torch.rand(4, *shape, generator=generator, dtype=torch.float64) * 2.0 - 1.0 for _ in range(2))
            if _ % 2:
                at, by = at.sign(), by.sign()
            y, d = torch.func.jvp(lambda t: evaluate(node, [t]), (x + x_error * at,), (v + v_error * by,))  # noqa: B023
            room = 1e-12 * (1.0 + y.abs())
            assert bool(((y - value.value).abs() <= value.error + room).all()), node
            inside = (d - along.tangent.value).abs() <= along.tangent.error + 1e-12 * (1.0 + d.abs())
            assert bool(inside[along.sound].all()), node
            tight += int(((y - value.value).abs() > 0.5 * value.error).any())
    assert sound > 50
    assert tight > 500


def test_the_sum_of_an_activation_s_terms_counts_its_rounding() -> None:
    g = derive("g", ((Term("identity"), Term("abs", 2.0**-25)),))
    x = Enclosure(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
    with coarse_arithmetic("zero"):
        found = enclosed(Elementwise("g", (0,), (1,), g), [x])
    assert abs(float(found.value) - (1.0 + 2.0**-25)) <= float(found.error) <= 1e-5


def test_two_constants_may_hide_that_a_third_one_s_place_is_not_known() -> None:
    """Neighbours are apart or constant; the first and the last are neither, and may change places."""
    value, error, live = ([0.0, 0.1, 1.0], [1.5, 0.0, 0.0], [0.0, 0.0, 1.0])
    x = Enclosure(torch.tensor([value], dtype=torch.float64), torch.tensor([error], dtype=torch.float64))
    t = Enclosure(torch.ones_like(x.value), torch.zeros_like(x.value))
    moving = torch.tensor([live], dtype=torch.float64)
    node = GroupSort("s", (0,), (3,), 3)
    assert not bool(enclosed_tangent(node, [Tangent(x, t, moving, torch.ones(1, dtype=torch.bool))]).sound)
    sure = Enclosure(x.value, 0.1 * x.error)
    assert bool(enclosed_tangent(node, [Tangent(sure, t, moving, torch.ones(1, dtype=torch.bool))]).sound)


def test_slopes_that_cancel_in_rounding_do_not_stop_what_comes_through() -> None:
    g = derive("g", ((Term("abs"), Term("identity", 2.0**-60), Term("relu", -1.0)),))
    at = torch.ones(1, 1, dtype=torch.float64)
    (slope,) = g.derivatives(at)
    exact = 2.0**-60  # of |t| + 2^-60 t - relu(t) for t > 0
    assert float(slope) == 0.0
    x, t = (Enclosure(at, torch.zeros_like(at)) for _ in range(2))
    node = Elementwise("g", (0,), (1,), g)
    found = enclosed_tangent(node, [Tangent(x, t, torch.ones_like(at), torch.ones(1, dtype=torch.bool))])
    assert bool(found.sound)
    assert float(found.live) == 1.0
    assert abs(float(found.tangent.value) - exact) <= float(found.tangent.error)


def test_a_side_is_certain_only_if_no_point_within_the_error_is_beyond_the_kink() -> None:
    """Places some ulps beside the kink and errors of as many, in exact arithmetic."""
    drawn = random.Random(0)
    certain = crossed = 0
    for _ in range(3000):
        scale, place = drawn.uniform(0.1, 10.0) * drawn.choice((-1.0, 1.0)), drawn.uniform(0.1, 10.0)
        offset = -scale * place
        z = place + drawn.randint(-120, 120) * math.ulp(place)
        error = drawn.uniform(0.0, 15.0) * math.ulp(place)
        g = derive("g", ((Term("relu", 1.0, scale, offset),),))
        found = bool(_side_is_certain(g, known([z], [error])))
        across = abs(Fraction(scale) * Fraction(z) + Fraction(offset)) <= abs(Fraction(scale)) * Fraction(error)
        assert not (found and across), (scale, offset, z, error)
        certain, crossed = certain + found, crossed + across
    assert certain > 100
    assert crossed > 100


def test_a_softmax_counts_the_rounding_of_its_evaluation() -> None:
    x = known([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    with coarse_arithmetic("away"):
        found = enclosed(Softmax("p", (0,), (3,)), [x])
    assert 0.0 < abs(float(found.value[0, 0]) - 1.0 / 3.0) <= float(found.error[0, 0]) <= 1e-4


@pytest.mark.parametrize("name", ["silu", "gelu", "mish", "tanh", "softsign", "sin"])
def test_what_underflows_before_a_large_coefficient_counts(name: str) -> None:
    """At three times the least number f(t) is a multiple of the least number: up to half of it is lost."""
    t = 3.0 * 2.0**-1074
    g = derive("g", ((Term(name, 2.0**1000),),))
    found = enclosed(Elementwise("g", (0,), (1,), g), [known([t], [0.0])])
    slope = float(g.derivatives(torch.zeros(1, 1, dtype=torch.float64))[0])  # 2^1000 of 1, 0.5 or 0.6
    exact = Fraction(slope) / 2**1000 * 3 * Fraction(2) ** -74
    assert abs(Fraction(float(found.value)) - exact) <= Fraction(float(found.error))
