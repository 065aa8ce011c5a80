"""The constant of every kind of node, and the algebra on sums and joins, against slow obvious references."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge.activations.registry import activation
from lipbridge.constants.layer_constants import output_constants
from lipbridge.constants.node_constants import normalize_norm_up
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Conv, Dense, Elementwise, GroupSort, Input, MaxPool, Node, Normalize
from lipbridge.vocabulary import NORMS, exponent
from tests.support.dags import dag


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrix_norm(J: Tensor, p) -> float:
    return float(torch.linalg.matrix_norm(J, {1: 1, 2: 2, "inf": math.inf}[p]))


def jacobian(graph: Graph, x: Tensor) -> Tensor:
    J = torch.func.jacrev(lambda y: graph(y[None])[0].flatten())(x)
    return J.reshape(-1, x.numel())


def constant(graph: Graph, p) -> float:
    return output_constants(graph, p, p)[p]


def sample(graph: Graph, p, seed: int = 0, count: int = 60) -> float:
    x = draw(seed, count, *graph.input_shape) * torch.logspace(-3, 2, count, dtype=torch.float64).reshape(
        -1, *[1] * len(graph.input_shape)
    )
    return max(matrix_norm(jacobian(graph, point), p) for point in x)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize(
    ("pool", "shape", "windows"),
    [
        (MaxPool("m", (0,), (1, 3, 3), (2, 2), (2, 2), (0, 0), (1, 1)), (1, 6, 6), 1),
        (MaxPool("m", (0,), (1, 3, 3), (3, 3), (2, 2), (1, 1), (1, 1)), (1, 6, 6), 4),
        (MaxPool("m", (0,), (2, 5), (3,), (1,), (0,), (1,)), (2, 7), 3),
        (MaxPool("m", (0,), (1, 2), (2,), (1,), (0,), (3,)), (1, 5), 1),
        (MaxPool("m", (0,), (1, 4), (2,), (1,), (0,), (2,)), (1, 6), 2),
    ],
)
def test_max_pooling_by_its_windows(pool: MaxPool, shape: tuple[int, ...], windows: int, p) -> None:
    """The factor is reached at a point where one input is the largest of all its windows."""
    graph = Graph((Input("x", (), shape), pool))
    exact = {1: float(windows), 2: math.sqrt(windows), "inf": 1.0}[p]
    assert constant(graph, p) == pytest.approx(exact, rel=1e-14)
    reached = 0.0
    for i in range(math.prod(shape)):
        x = torch.arange(math.prod(shape), dtype=torch.float64) * 1e-3
        x[i] = 9.0
        reached = max(reached, matrix_norm(jacobian(graph, x.reshape(shape)), p))
    assert reached == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1.0, 1e3])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 40])
def test_normalisation(n: int, epsilon: float) -> None:
    """Exact in l_2 (reached where all entries are equal); in l_1 and l_inf above every Jacobian, by little."""
    graph = Graph((Input("x", (), (n,)), Normalize("norm", (0,), (n,), 1, epsilon)))
    flat = jacobian(graph, torch.full((n,), 0.5, dtype=torch.float64))
    if n == 1:
        assert constant(graph, 2) == 0.0
        return
    assert matrix_norm(flat, 2) <= constant(graph, 2) * (1 + 1e-12)
    assert constant(graph, 2) == pytest.approx(epsilon**-0.5, rel=1e-13)
    assert matrix_norm(flat, 2) == pytest.approx(constant(graph, 2), rel=1e-9)
    spike = torch.zeros(n, dtype=torch.float64)
    for p in (1, "inf"):
        worst = matrix_norm(flat, p)
        for size in torch.logspace(-2, 2, 40, dtype=torch.float64) * math.sqrt(epsilon):
            for direction in (draw(n, n), spike.clone().index_fill(0, torch.tensor([0]), 1.0)):
                worst = max(worst, matrix_norm(jacobian(graph, direction * size), p))
        assert worst <= constant(graph, p) <= 2.0 * worst
    assert normalize_norm_up(n, epsilon, 1) <= n**0.5 * 2.0 / epsilon**0.5 * (1 + 1e-12)


def test_normalisation_says_that_it_makes_the_bound_large() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    bound = lipbridge.trivial_bound(module)
    assert "`1`" in bound.detail
    assert "1/sqrt(epsilon) = 316" in bound.detail
    parts = [lipbridge.proved_operator_norm(module[i].weight) for i in (0, 2)]
    assert bound.value == pytest.approx(math.prod(parts) / math.sqrt(1e-5), rel=1e-12)
    assert lipbridge.trivial_bound(nn.Linear(3, 2)).detail == ""


@pytest.mark.parametrize("p", NORMS)
def test_sorting_has_constant_one(p) -> None:
    assert constant(Graph((Input("x", (), (6, 2)), GroupSort("s", (0,), (6, 2), 3))), p) == 1.0


def conv(at: int, W: Tensor, shape: tuple[int, ...], mode: str = "circular", name: str = "conv") -> Conv:
    pad = tuple((k // 2, k // 2) for k in W.shape[2:])
    ones = (1,) * (W.ndim - 2)
    return Conv(name, (at,), shape, W, None, ones, pad, ones, shape[0] // W.shape[1], mode)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("size", [5, 40])
def test_a_linear_residual_is_one_convolution(p, mode: str, size: int) -> None:
    """x + W x and W x + V x + D x: the norm of the sum, not the sum of norms; with and without building the matrix."""
    shape = (4, size, 5)
    W, V, D = 0.3 * draw(0, 4, 2, 3, 3), 0.3 * draw(1, 4, 2, 3, 3), draw(2, 4, 1, 1, 1)
    scale = Conv("d", (0,), shape, D, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 4)
    first = Graph((Input("x", (), shape), conv(0, W, shape, mode), Add("a", (0, 1), shape)))
    second = Graph(
        (Input("x", (), shape), conv(0, W, shape, mode), conv(0, V, shape, mode), scale, Add("a", (1, 2, 3), shape))
    )
    # x + BN(W x): a scaled branch is a branch as well; its scale stands behind it.
    after = Conv("bn", (1,), shape, D, None, (1, 1), ((0, 0), (0, 0)), (1, 1), 4)
    third = Graph((Input("x", (), shape), conv(0, W, shape, mode), after, Add("a", (0, 2), shape)))
    scaled = Graph((Input("x", (), shape), conv(0, W * D, shape, mode), Add("a", (0, 1), shape)))
    assert constant(third, p) == pytest.approx(constant(scaled, p), rel=1e-12)
    for graph in (first, second, scaled, third):
        found = constant(graph, p)
        if size == 5:
            exact = matrix_norm(jacobian(graph, torch.zeros(shape, dtype=torch.float64)), p)
            assert exact <= found * (1 + 1e-12)
            assert found <= exact * (1.0 + 1e-8 if mode == "circular" or p != 2 else 1.5)
        if graph is third:
            continue
        apart = sum(constant(Graph((graph.nodes[0], node)), p) for node in graph.nodes[1:-1])
        apart += graph is not second
        assert found < apart if p == 2 else found <= apart * (1 + 1e-9)


@pytest.mark.parametrize("p", NORMS)
def test_cancelling_branches_and_nested_sums(p) -> None:
    """W x - W x is zero, and x + (V x + W x) is one matrix; what is nonlinear stays apart."""
    W, V, U = draw(0, 3, 3), draw(1, 3, 3), draw(2, 3, 3)
    x = Input("x", (), (3,))
    dense = [Dense("W", (0,), (3,), W), Dense("V", (0,), (3,), V, draw(5, 3))]
    gone = Graph((x, dense[0], Dense("-W", (0,), (3,), -W), Add("a", (1, 2), (3,))))
    assert constant(gone, p) <= 1e-13
    nested: tuple[Node, ...] = (x, *dense, Add("a", (1, 2), (3,)), Add("b", (0, 3), (3,)))
    exact = matrix_norm(torch.eye(3, dtype=torch.float64) + V + W, p)
    assert constant(Graph(nested), p) == pytest.approx(exact, rel=1e-9)
    both = Concat("c", (0, 3), (6,))
    stacked = matrix_norm(torch.cat([torch.eye(3, dtype=torch.float64), V + W]), p)
    assert constant(Graph((*nested[:4], both)), p) == pytest.approx(stacked, rel=1e-9)
    bent = Elementwise("relu", (0,), (3,), activation("relu"))
    partly = Graph((*nested[:3], bent, Dense("U", (3,), (3,), U), Add("a", (0, 1, 2, 4), (3,))))
    assert constant(partly, p) == pytest.approx(exact + matrix_norm(U, p), rel=1e-9)


@pytest.mark.parametrize("p", NORMS)
def test_what_underflows_before_it_grows_is_covered(p) -> None:
    """One number: the constant is the product of three, in exact arithmetic."""
    for first in (2.9e-20, 3.3e-22, 7e-23, 2e-24):
        number = [torch.full((1, 1), value, dtype=torch.float64) for value in (first, 1e-300, 1e300)]
        empty = ((), (), (), 1)
        graph = Graph(
            (
                Input("x", (), (1,)),
                Conv("a", (0,), (1,), number[0], None, *empty),
                Dense("b", (1,), (1,), number[1]),
                Conv("c", (2,), (1,), number[2], None, *empty),
            )
        )
        assert Fraction(constant(graph, p)) >= Fraction(first) * Fraction(1e-300) * Fraction(1e300)


@pytest.mark.parametrize("p", NORMS)
def test_diagonal_maps_belong_to_their_layer(p) -> None:
    """BatchNorm after a layer and a normalised input before it count with the layer, for any groups."""
    shape, W = (4, 5, 5), draw(0, 6, 2, 3, 3)
    before, after = draw(1, 4, 1, 1, 1), draw(2, 6, 1, 1, 1)
    ones, none = (1, 1), ((0, 0), (0, 0))
    graph = Graph(
        (
            Input("x", (), shape),
            Conv("in", (0,), shape, before, None, ones, none, ones, 4),
            Conv("conv", (1,), (6, 3, 3), W, None, ones, none, ones, 2),
            Conv("norm", (2,), (6, 3, 3), after, draw(3, 6), ones, none, ones, 6),
        )
    )
    exact = matrix_norm(jacobian(graph, torch.zeros(shape, dtype=torch.float64)), p)
    assert exact * (1 - 1e-13) <= constant(graph, p) <= exact * (1.3 if p == 2 else 1 + 1e-12)
    single = Conv("scale", (0,), shape, before, None, ones, none, ones, 4)
    assert constant(Graph((graph.nodes[0], single)), p) == float(before.abs().max())
    rows = Dense("W", (0,), (3,), draw(4, 3, 4))
    dense = Graph((Input("x", (), (4,)), rows, Conv("n", (1,), (3,), draw(5, 3, 1), None, (), (), (), 3)))
    product = matrix_norm(draw(5, 3, 1) * rows.weight, p)
    assert constant(dense, p) == pytest.approx(product, rel=1e-12)
    huge = Graph((dense.nodes[0], Dense("W", (0,), (3,), rows.weight * 1e200), *dense.nodes[2:]))
    assert constant(huge, p) == pytest.approx(product * 1e200, rel=1e-12)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(NORMS))
def test_never_below_a_jacobian(seed: int, p) -> None:
    graph = dag(seed)
    try:
        found = constant(graph, p)
    except lipbridge.errors.NumericalFailure:
        return
    for x in draw(seed, 6, *graph.input_shape) * torch.tensor([1e-4, 0.1, 1.0, 1.0, 10.0, 1e3]).reshape(
        -1, *[1] * len(graph.input_shape)
    ):
        J = jacobian(graph, x)
        if bool(torch.isfinite(J).all()):
            assert float(torch.linalg.matrix_norm(J, exponent(p))) <= found * (1 + 1e-9)
