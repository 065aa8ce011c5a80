"""Problem, Bound, and the trivial bound: exact cases, mixed norms, rounding, errors."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge import Ball, Problem, Question
from lipbridge.constants.layer_constants import output_constants
from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Dense, Elementwise, Input
from lipbridge.norms import CHEAP_PAIRS
from lipbridge.vocabulary import NORMS, Quantity, Side, Status, as_norm


def exact_product(module: nn.Sequential, norm) -> Fraction:
    """The product of l_1 or l_inf norms in rational arithmetic."""
    product = Fraction(1)
    for layer in module:
        if isinstance(layer, nn.Linear):
            W = layer.weight.detach().double()
            rows = W.T if norm == 1 else W
            product *= max(sum((abs(Fraction(float(x))) for x in row), Fraction(0)) for row in rows)
    return product


@pytest.mark.parametrize("norm", [1, "inf"])
@pytest.mark.parametrize("seed", range(20))
def test_product_against_rational_arithmetic(norm, seed: int) -> None:
    torch.manual_seed(seed)
    module = lipbridge.mlp([7, 9, 8, 3], "relu")
    bound = lipbridge.trivial_bound(module, norm)
    exact = exact_product(module, norm)
    assert bound.proved
    assert bound.side is Side.UPPER
    assert exact <= Fraction(bound.value) <= exact * Fraction(1 + 1e-13)


def test_product_of_spectral_norms() -> None:
    module = lipbridge.mlp([30, 20, 10], "crelu")
    expected = math.prod(float(torch.linalg.svdvals(module[i].weight.detach().double())[0]) for i in (0, 2))
    assert expected <= lipbridge.trivial_bound(module).value <= expected * (1 + 1e-11)


@pytest.mark.parametrize(("p", "q"), [(1, 2), (1, "inf"), (2, "inf")])
def test_mixed_norms_take_the_best_path(p, q) -> None:
    torch.manual_seed(0)
    module = lipbridge.mlp([6, 7, 5, 4], "abs")
    weights = [module[i].weight.detach().double() for i in (0, 2, 4)]
    norms = [r for r in NORMS if NORMS.index(p) <= NORMS.index(r) <= NORMS.index(q)]
    best = math.inf
    for middle in itertools.product(norms, repeat=2):
        path = (p, *middle, q)
        if all((a, b) in CHEAP_PAIRS for a, b in itertools.pairwise(path)):
            factors = zip(weights, itertools.pairwise(path), strict=True)
            best = min(best, math.prod(float(lipbridge.operator_norm(W, a, b)) for W, (a, b) in factors))
    assert lipbridge.trivial_bound(module, p, q).value == pytest.approx(best, rel=1e-11)
    assert lipbridge.trivial_bound(module, p, q).norm == f"{p}->{q}"


@pytest.mark.parametrize(("p", "q"), [("inf", 1), ("inf", 2), (2, 1)])
def test_hard_norms_say_why(p, q) -> None:
    with pytest.raises(UnsupportedProblem, match="NP-hard"):
        lipbridge.trivial_bound(lipbridge.mlp([3, 4, 2]), p, q)


def test_constants_of_activations_count() -> None:
    for name, norm, constant in (("silu", 2, 1.0998393201), ("sincos", 1, math.sqrt(2)), ("identity_abs", 1, 2.0)):
        module = lipbridge.mlp([3, 4, 2], name)
        plain = math.prod(lipbridge.proved_operator_norm(module[i].weight, norm) for i in (0, 2))
        assert lipbridge.trivial_bound(module, norm).value / plain == pytest.approx(constant, rel=1e-9)


def test_zero_layer_gives_exactly_zero() -> None:
    module = lipbridge.mlp([3, 4, 2])
    nn.init.zeros_(module[2].weight)
    assert lipbridge.trivial_bound(module).value == 0.0


def test_underflow_is_no_zero_and_overflow_no_number() -> None:
    small, large = (lipbridge.mlp([3, 4, 4, 2], "abs").double() for _ in range(2))
    with torch.no_grad():
        for module, scale in ((small, 1e-170), (large, 1e170)):
            for i in (0, 2, 4):
                module[i].weight.mul_(scale)
    assert lipbridge.trivial_bound(small).value > 0.0
    with pytest.raises(NumericalFailure):
        lipbridge.trivial_bound(large)


def test_nan_weights_are_an_error() -> None:
    module = lipbridge.mlp([3, 4, 2])
    with torch.no_grad():
        module[0].weight[0, 0] = math.nan
    with pytest.raises(NumericalFailure, match="NaN"):
        lipbridge.trivial_bound(module)


def test_joining_nodes() -> None:
    """x -> concat(A x, B x) + C relu(x), made by hand: the triangle inequality, and the join is one matrix."""
    A, B, C = (torch.randn(s, 3, dtype=torch.float64) for s in (2, 3, 5))
    nodes = (
        Input("x", (), (3,)),
        Dense("A", (0,), (2,), A),
        Dense("B", (0,), (3,), B),
        Concat("cat", (1, 2), (5,)),
        Elementwise("relu", (0,), (3,), lipbridge.activation("relu")),
        Dense("C", (4,), (5,), C),
        Add("add", (3, 5), (5,)),
        Elementwise("abs", (6,), (5,), lipbridge.activation("abs")),
    )
    graph = Graph(nodes)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(graph(x), (torch.cat([x @ A.T, x @ B.T], 1) + x.relu() @ C.T).abs())
    for norm in NORMS:
        expected = float(lipbridge.operator_norm(torch.cat([A, B]), norm)) + float(lipbridge.operator_norm(C, norm))
        found = output_constants(graph, norm, norm)[norm]
        assert found == pytest.approx(expected, rel=1e-11)
        assert found >= expected * (1 - 1e-15)


def test_a_graph_is_checked() -> None:
    with pytest.raises(ValueError, match="Input"):
        Graph((Dense("W", (), (1,), torch.ones(1, 1)),))
    with pytest.raises(ValueError, match="does not come before"):
        Graph((Input("x", (), (1,)), Dense("W", (1,), (1,), torch.ones(1, 1))))


def test_problem_and_ball_are_checked() -> None:
    graph = lipbridge.capture(lipbridge.mlp([3, 4, 2]))
    with pytest.raises(InvalidArgument, match="radius"):
        Ball(torch.zeros(1, 3), 0.0, 2)
    with pytest.raises(InvalidArgument, match="centers"):
        Ball(torch.zeros(3), 1.0, 2)
    with pytest.raises(InvalidArgument, match="region"):
        Problem(graph, Question(input_norm=2, output_norm=2, region=None, quantity=Quantity.DEVIATION))
    region = Ball(torch.zeros(4, 3), 0.5, "inf")
    assert Problem(graph, Question.on(region, 2)).region_name == "4 linf balls, radius 0.5"


def test_norm_spellings() -> None:
    assert [as_norm(x) for x in (1, "1", 2.0, "l2", "inf", math.inf, "l_inf", "linf")] == [1, 1, 2, 2] + ["inf"] * 4
    for bad in (3, "two", None, math.nan, 0):
        with pytest.raises(InvalidArgument, match="1, 2 or inf"):
            as_norm(bad)


def test_bound_reads_well_and_statuses_advise() -> None:
    text = repr(lipbridge.trivial_bound(lipbridge.mlp([3, 4, 2])))
    assert "lipschitz <=" in text
    assert ", proved, l2, everywhere, trivial bound" in text
    assert all(status.advice for status in Status if status is not Status.OK)


def test_compose_output_and_moving() -> None:
    graph = lipbridge.capture(lipbridge.mlp([3, 4, 2]))
    C = torch.tensor([[1.0, -1.0]])
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(graph.compose_output(C)(x), graph(x) @ C.double().T)
    headless = Graph(graph.nodes[:-1])
    D = torch.randn(2, 4)
    torch.testing.assert_close(headless.compose_output(D)(x), headless(x) @ D.double().T)
    assert graph.to("meta")(torch.empty(5, 3, dtype=torch.float64, device="meta")).shape == (5, 2)


def test_tangent_is_the_jacobian_vector_product() -> None:
    for name in lipbridge.activation_names():
        graph = lipbridge.capture(lipbridge.mlp([3, 4, 2], name).double())
        x, v = torch.randn(2, 5, 3, dtype=torch.float64)
        value, tangent = graph.tangent(x, v)
        _, expected = torch.func.jvp(graph, (x,), (v,))
        torch.testing.assert_close(value, graph(x))
        torch.testing.assert_close(tangent, expected)


def test_a_module_of_images_is_bounded_by_its_shape():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    with pytest.raises(InvalidArgument, match="input_shape"):
        lipbridge.trivial_bound(net)
    bound = lipbridge.trivial_bound(net, input_shape=(1, 5, 5))
    assert bound.value == lipbridge.trivial_bound(lipbridge.capture(net, (1, 5, 5))).value
