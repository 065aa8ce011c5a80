"""Softmax and log-softmax: the constant for each pair of norms is exact; its rules, its forms, and the advice."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.constants.layer_constants import output_constants
from lipbridge.constants.node_constants import softmax_norm_up
from lipbridge.errors import LipbridgeError, UnsupportedOperation
from lipbridge.files.graphs import load_graph, save_graph
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Input, Node, Softmax
from lipbridge.lowering.chain import as_chain
from lipbridge.problem.question import Ball
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import enclose_tangent
from lipbridge.search import search_lower_bound
from lipbridge.vocabulary import NORMS, Norm
from tests.support.captured import Lambda, agrees, kinds
from tests.support.enclosed import require_inside

PAIRS: list[tuple[Norm, Norm]] = [(1, 1), (1, 2), (1, "inf"), (2, 2), (2, "inf"), ("inf", "inf")]
BOTH = pytest.mark.parametrize("log", [False, True], ids=["softmax", "log-softmax"])


def softmax(n: int, log: bool, *space: int, axis: int = 0) -> Graph:
    return Graph((Input("x", (), (n, *space)), Softmax("softmax", (0,), (n, *space), axis, log)))


def matrix_norm(J: Tensor, p: Norm, q: Norm) -> float:
    """Slowly, by the definition: extreme points of the l_1 ball, rows for l_inf outputs, all signs for l_inf inputs."""
    order = {1: 1, 2: 2, "inf": math.inf}
    if p == 1:
        return float(torch.linalg.vector_norm(J, order[q], dim=0).max())
    if q == "inf":
        return float(torch.linalg.vector_norm(J, {2: 2, "inf": 1}[p], dim=1).max())
    return float(torch.linalg.matrix_norm(J, 2))


def points(n: int) -> Tensor:
    """Logits from which the probabilities are one, two or all equal, and anything."""
    generator = torch.Generator().manual_seed(n)
    rows = [torch.zeros(n), *(torch.randn(n, generator=generator) * s for s in (0.1, 1.0, 3.0, 10.0, 100.0))]
    for size, first in itertools.product((0.5, 1.0, 3.0, 40.0, 800.0), (1, 2)):
        x = torch.zeros(n)
        x[:first] = size
        rows += [x, -x]
    return torch.stack(rows).double()


@BOTH
@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 50])
def test_the_constants_are_approached_and_never_exceeded(n: int, log: bool) -> None:
    graph = softmax(n, log)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda y: F.log_softmax(y, 0) if log else F.softmax(y, 0)))(points(n))
    for p, q in PAIRS:
        bound = output_constants(graph, p, q)[q]
        largest = max(matrix_norm(J, p, q) for J in jacobians)
        assert largest <= bound * (1.0 + 1e-14)
        assert largest >= bound * (1.0 - 1e-9)
        assert lipbridge.trivial_bound(graph, p, q).value == bound


@BOTH
def test_rounding_of_the_constants(log: bool) -> None:
    """Squares of roots are not below the integers."""
    for n in range(2, 200):
        assert softmax_norm_up(n, 2, 2, log=True) ** 2 >= n * (1 - 2**-52)
        for (p, q), exact in {(1, 2): 0.125, (2, "inf"): 0.125}.items() if not log else {(2, "inf"): 2.0}.items():
            with localcontext() as context:
                context.prec = 60
                assert Decimal(softmax_norm_up(n, p, q, log=log)) ** 2 >= Decimal(exact)


@BOTH
def test_witness_search_reaches_it(log: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(-1) if log else nn.Softmax(-1))
    for norm in NORMS:
        problem = lipbridge.Problem(lipbridge.capture(module), lipbridge.Question.everywhere(norm))
        lower, upper = search_lower_bound(problem), lipbridge.trivial_bound(module, norm)
        assert 0.2 * upper.value < lower.value <= upper.value
        assert lower.proved
        assert upper.proved


def exact_softmax(x: list[Decimal], log: bool) -> list[Decimal]:
    largest = max(x)
    terms = [(t - largest).exp() for t in x]
    total = sum(terms)
    return [(t - largest) - total.ln() if log else e / total for t, e in zip(x, terms, strict=True)]


@BOTH
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 30.0, 800.0, 1e6, 1e300])
def test_running_error_holds_the_exact_value(log: bool, scale: float) -> None:
    x = torch.randn(4, 5, dtype=torch.float64) * scale
    found = enclose(softmax(5, log), x)
    v = torch.randn(4, 5, dtype=torch.float64)
    moved = enclose_tangent(softmax(5, log), x, v).tangent
    with localcontext() as context:
        context.prec = 400
        for row, direction, values, errors, tangents, slack in zip(
            x, v, found.value, found.error, moved.value, moved.error, strict=True
        ):
            exact = exact_softmax([Decimal(float(t)) for t in row], log)
            p = exact_softmax([Decimal(float(t)) for t in row], False)
            d = [Decimal(float(t)) for t in direction]
            mean = sum(a * b for a, b in zip(p, d, strict=True))
            for i in range(5):
                assert abs(exact[i] - Decimal(float(values[i]))) <= Decimal(float(errors[i]))
                derivative = (d[i] - mean) * (1 if log else p[i])
                assert abs(derivative - Decimal(float(tangents[i]))) <= Decimal(float(slack[i]))
    assert bool((found.error <= 1e-13 * (1.0 + found.value.abs())).all())
    assert bool((moved.error <= 1e-12).all())


@BOTH
def test_running_error_of_an_uncertain_input(log: bool) -> None:
    """A layer before it rounds, and what it rounds is amplified by at most the constant."""
    W = torch.randn(4, 3, dtype=torch.float64)
    graph = Graph((Input("x", (), (3,)), Dense("d", (0,), (4,), W), Softmax("s", (1,), (4,), 0, log)))
    x = torch.randn(6, 3, dtype=torch.float64) * torch.logspace(-3, 5, 6, dtype=torch.float64)[:, None]
    found = enclose(graph, x)
    with localcontext() as context:
        context.prec = 400
        for row, values, errors in zip(x, found.value, found.error, strict=True):
            entries = [Decimal(float(t)) for t in row]
            z = [sum((Decimal(float(w)) * t for w, t in zip(r, entries, strict=True)), Decimal(0)) for r in W]
            for value, found_one, error in zip(exact_softmax(z, log), values, errors, strict=True):
                assert abs(value - Decimal(float(found_one))) <= Decimal(float(error))


@BOTH
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [1, 2, 6])
def test_intervals(n: int, norm: Norm, log: bool) -> None:
    for axis, radius, scale in itertools.product((0, 1), (1e-9, 1e-3, 0.1, 10.0, 1e4), (1.0, 1e3)):
        graph = softmax(n, log, 3, axis=axis)
        ball = Ball(torch.randn(3, n, 3, dtype=torch.float64) * scale, radius, norm)
        for linear in (False, True):
            found = forward_bounds(graph, ball, layer_norms(graph, norm), linear=linear)
            require_inside(graph, ball, found)
            assert bool((found[-1].upper <= (0.0 if log else 1.0)).all())
            assert log or bool((found[-1].lower >= 0.0).all())


@BOTH
def test_intervals_are_exact_at_the_corners(log: bool) -> None:
    """The i-th entry is the largest where x_i is and the others are the smallest."""
    x, radius, n = torch.randn(1, 5, dtype=torch.float64) * 3, 0.7, 5
    found = forward_bounds(softmax(n, log), Ball(x, radius, "inf"))[-1]
    for i in range(n):
        corner = x - radius
        corner[0, i] += 2 * radius
        for end, point in ((found.upper, corner), (found.lower, 2 * x - corner)):
            exact = (F.log_softmax(point, 1) if log else F.softmax(point, 1))[0, i]
            torch.testing.assert_close(end[0, i], exact, rtol=1e-12, atol=1e-14)


def test_it_is_local_where_the_network_is_sure() -> None:
    """Far from ties softmax hardly moves, and its distance knows it."""
    found = forward_bounds(softmax(4, False), Ball(torch.tensor([[20.0, 0.0, 0.0, 0.0]]), 0.1, 2))[-1]
    assert float(found.distance) < 1e-7


@pytest.mark.parametrize("log", [False, True])
def test_infinite_intervals_tell_nothing_wrong(log: bool) -> None:
    W = torch.tensor([[1e300, 1.0], [1.0, -1e300], [0.0, 1.0]], dtype=torch.float64)
    dense = Dense("d", (0,), (3,), W)
    graph = Graph((Input("x", (), (2,)), dense, Softmax("s", (1,), (3,), 0, log)))
    found = forward_bounds(graph, Ball(torch.zeros(1, 2, dtype=torch.float64), 1e30, "inf"))[-1]
    assert not bool(found.lower.isnan().any() or found.upper.isnan().any() or found.distance.isnan().any())
    assert bool((found.upper == (0.0 if log else 1.0)).all())


# --- capture ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "axis", "log"),
    [
        (nn.Softmax(-1), (4,), 0, False),
        (nn.LogSoftmax(1), (3, 4), 0, True),
        (nn.Softmax2d(), (3, 2, 2), 0, False),
        (Lambda(lambda x: torch.softmax(x, 2)), (3, 4), 1, False),
        (Lambda(lambda x: F.log_softmax(x.relu(), -1, dtype=torch.float64)), (3, 4), 1, True),
        (Lambda(lambda x: F.softmin(x, -1)), (4,), 0, False),
        (Lambda(lambda x: torch.special.log_softmax(x, 1)), (4,), 0, True),
    ],
)
def test_forms(module: nn.Module, shape: tuple[int, ...], axis: int, log: bool) -> None:
    (node,) = (node for node in agrees(module, shape) if isinstance(node, Softmax))
    assert (node.axis, node.log) == (axis, log)


@pytest.mark.parametrize("function", [lambda x: x.softmax(0), lambda x: x @ x.softmax(-1).transpose(-1, -2)])
def test_others_are_refused(function) -> None:
    with pytest.raises(UnsupportedOperation, match=r"batch|product of two functions"):
        lipbridge.capture(Lambda(function), (4, 4))


@BOTH
def test_the_advice_is_where_the_bound_is(log: bool) -> None:
    last = nn.LogSoftmax(-1) if log else nn.Softmax(-1)
    bound = lipbridge.trivial_bound(nn.Sequential(nn.Linear(3, 4), last))
    assert "the last layer `1` is a" in bound.detail
    assert "bound the logits" in bound.detail
    assert "logits" not in lipbridge.trivial_bound(nn.Sequential(nn.Linear(3, 4), last, nn.Linear(4, 2))).detail
    graph = lipbridge.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), last))
    with pytest.raises(LipbridgeError, match="up to the logits"):
        as_chain(graph)


@BOTH
@pytest.mark.parametrize("norm", NORMS)
def test_the_penalty_is_live(norm: Norm, log: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.LogSoftmax(-1) if log else nn.Softmax(-1))
    penalty = lipbridge.TrivialBoundPenalty(module, norm)
    with torch.no_grad():
        module[0].weight.mul_(3.0)
    penalty().backward()
    assert float(module[0].weight.grad.abs().sum()) > 0.0
    assert penalty.bound().value == pytest.approx(lipbridge.trivial_bound(module, norm).value, rel=1e-6)


@BOTH
def test_it_is_stored(log: bool, tmp_path: Path) -> None:
    graph = lipbridge.capture(nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(-1) if log else nn.Softmax(-1)))
    save_graph(graph, tmp_path / "g.safetensors")
    found = load_graph(tmp_path / "g.safetensors")
    assert kinds(found) == kinds(graph)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(found(x), graph(x))


@pytest.mark.parametrize("axis", [-1, 1, 7])
def test_a_file_with_another_axis_is_refused(axis: int, tmp_path: Path) -> None:
    nodes: tuple[Node, ...] = (Input("x", (), (4,)), Softmax("s", (0,), (4,), axis))
    save_graph(Graph(nodes), tmp_path / "g.safetensors")
    with pytest.raises(LipbridgeError, match="axis"):
        load_graph(tmp_path / "g.safetensors")
