"""Weights from 1e-320 to 1e150 whose products underflow: no bound is below the exact constant, at tolerance zero.

Networks are tiny, their Jacobians exact rationals: that of any point is a lower bound of the constant, whose l_1 and
l_inf norms are exact, and whose l_2 norm is met from below by one exact quotient.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.activations.activation import Activation, Term, derive
from lipbridge.activations.registry import activation
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, Input, Node
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Question
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import enclose_tangent
from lipbridge.robustness.radii import certified_radii, difference_norms_up
from lipbridge.vocabulary import NORMS, Norm

Row = list[Fraction]


def number(draw: random.Random, low: float, high: float) -> float:
    """Mostly of any size between two powers of ten; sometimes zero, ordinary, or a power of two."""
    kind, sign = draw.random(), draw.choice((-1.0, 1.0))
    if kind < 0.1:
        return 0.0
    if kind < 0.3:
        return sign * draw.uniform(0.3, 3.0)
    exponent = draw.uniform(low, high)
    value = sign * 10.0 ** (exponent / 2) * 10.0 ** (exponent - exponent / 2)
    return math.ldexp(0.5, math.frexp(value)[1]) if kind < 0.4 and value else value


def pieces(draw: random.Random, low: float, high: float) -> Activation:
    """An activation of lines, scaled."""
    kind = draw.choice(("relu", "abs", "leaky", "scaled", "two", "joint"))
    if kind in ("relu", "abs"):
        return activation(kind)
    slope, outer, inner = abs(number(draw, low, 0.0)), number(draw, low, high), number(draw, low, high)
    leaky = Term("leaky_relu", outer, inner, 0.0, (slope,))
    if kind == "leaky":
        return derive("leaky", ((Term("leaky_relu", parameters=(slope,)),),))
    if kind == "scaled":
        return derive("scaled", ((leaky,),))
    other = Term(draw.choice(("relu", "identity")), number(draw, low, high), number(draw, low, high))
    return derive("two", ((leaky, other),) if kind == "two" else ((leaky,), (other,)))


def network(seed: int) -> Graph:
    """Dense layers, diagonal maps and activations; a layer may bring the product back to ordinary size."""
    draw = random.Random(seed)
    low, high = draw.choice(((-320.0, 150.0), (-320.0, -280.0), (-170.0, -140.0), (-320.0, 0.0), (-160.0, 150.0)))
    n = draw.choice((1, 1, 2, 3))
    nodes: list[Node] = [Input("x", (), (n,))]
    total, depth = 0.0, draw.choice((1, 2, 2, 3))
    for layer in range(depth):
        m = draw.choice((1, 1, 2, 3))
        rows = [[number(draw, low, high) for _ in range(n)] for _ in range(m)]
        if layer == depth - 1 or draw.random() < 0.3:
            size = 10.0 ** max(-300.0, min(300.0, draw.uniform(-50.0, 50.0) - total))
            rows = [[draw.choice((-1.0, 1.0)) * draw.uniform(0.5, 2.0) * size for _ in range(n)] for _ in range(m)]
        if m > 1 and draw.random() < 0.2:
            rows[1] = list(rows[0]) if draw.random() < 0.5 else [0.0] * n
        W = torch.tensor(rows, dtype=torch.float64)
        nodes.append(Dense(f"dense{layer}", (len(nodes) - 1,), (m,), W))
        total, n = total + _size(W), m
        if draw.random() < 0.5:
            scale = torch.tensor([number(draw, low, high) for _ in range(n)], dtype=torch.float64)
            nodes.append(Conv(f"scale{layer}", (len(nodes) - 1,), (n,), scale[:, None], None, groups=n))
            total += _size(scale)
        if layer < depth - 1:
            made = pieces(draw, low, high)
            n *= made.width
            nodes.append(Elementwise(f"act{layer}", (len(nodes) - 1,), (n,), made))
            total += min(0.0, math.log10(made.lipschitz[2])) if made.lipschitz[2] else 0.0
    return Graph(tuple(nodes))


def _size(W: Tensor) -> float:
    largest = float(W.abs().max())
    return math.log10(largest) if largest else 0.0


def exact(graph: Graph, x: Row) -> tuple[Row, list[Row]] | None:
    """Value and Jacobian at x in exact arithmetic; None at a kink."""
    z, J = list(x), [[Fraction(int(i == j)) for j in range(len(x))] for i in range(len(x))]
    for node in graph.nodes[1:]:
        if isinstance(node, Dense):
            W = [[Fraction(v) for v in row] for row in node.weight.tolist()]
        elif isinstance(node, Conv):
            scale = node.weight.flatten().tolist()
            W = [[Fraction(v if i == j else 0.0) for j in range(len(z))] for i, v in enumerate(scale)]
        else:
            assert isinstance(node, Elementwise)
            if any(v == 0 and any(row) for v, row in zip(z, J, strict=True)):
                return None
            slopes = [[_slope(component, v) for v in z] for component in node.activation.components]
            J = [[s * v for v in row] for part in slopes for s, row in zip(part, J, strict=True)]
            z = [s * v for part in slopes for s, v in zip(part, z, strict=True)]
            continue
        z = [sum((a * b for a, b in zip(row, z, strict=True)), Fraction(0)) for row in W]
        columns = list(zip(*J, strict=True))
        J = [[sum((a * b for a, b in zip(row, c, strict=True)), Fraction(0)) for c in columns] for row in W]
    return z, J


def _slope(component: tuple[Term, ...], t: Fraction) -> Fraction:
    total = Fraction(0)
    for term in component:
        left, right = {"relu": (0.0, 1.0), "abs": (-1.0, 1.0), "identity": (1.0, 1.0)}.get(
            term.function, (*term.parameters, 1.0)
        )
        side = Fraction(right if Fraction(term.scale) * t > 0 else left)
        total += Fraction(term.coefficient) * Fraction(term.scale) * side
    return total


def squared_norm(J: list[Row], p: Norm) -> Fraction:
    """The square of the l_p norm, in l_2 of one that is no larger."""
    if p != 2:
        lines = J if p == "inf" else zip(*J, strict=True)
        return max(sum((abs(v) for v in line), Fraction(0)) for line in lines) ** 2
    largest = max(abs(v) for row in J for v in row)
    if largest == 0:
        return Fraction(0)
    scaled = torch.tensor([[float(v / largest) for v in row] for row in J], dtype=torch.float64)
    v = [Fraction(a) for a in torch.linalg.svd(scaled)[2][0].tolist()]
    image = [sum((a * b for a, b in zip(row, v, strict=True)), Fraction(0)) for row in J]
    return sum((a * a for a in image), Fraction(0)) / sum((a * a for a in v), Fraction(0))


def points(graph: Graph, seed: int) -> list[Row]:
    draw = random.Random(seed)
    return [
        [Fraction(draw.choice((-1, 1)) * draw.randint(1, 9)) for _ in range(graph.input_shape[0])] for _ in range(4)
    ]


def bound(name: str, graph: Graph, p: Norm) -> Bound | None:
    """The bound, or None where a verifier refuses or float64 has no room."""
    try:
        return (
            lipbridge.get_verifier(name)
            .prepare(Problem(graph, Question.everywhere(p)))
            .bound(lipbridge.Budget(seconds=5.0))
        )
    except (NumericalFailure, UnsupportedProblem):
        return None


def check(name: str, seeds: range, norms: tuple[Norm, ...]) -> None:
    tried = 0
    for seed in seeds:
        graph = network(seed)
        found = [at[1] for x in points(graph, seed) if (at := exact(graph, x)) is not None]
        for p in norms:
            proved = bound(name, graph, p)
            if proved is None or not math.isfinite(proved.value):
                continue
            tried += 1
            largest = max((squared_norm(J, p) for J in found), default=Fraction(0))
            assert Fraction(proved.value) ** 2 >= largest, (name, seed, p, proved.value)
    assert tried > 0.6 * len(seeds) * len(norms)


def test_the_trivial_bound() -> None:
    check("trivial", range(150), NORMS)


@pytest.mark.parametrize(("name", "count"), [("eclipse-fast", 60), ("lipsdp-fast", 25)])
def test_lipsdp_without_a_solver(name: str, count: int) -> None:
    check(name, range(1000, 1000 + count), (2,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trivial", "eclipse-fast", "lipsdp-fast", "lipsdp"])
def test_many_networks(name: str) -> None:
    check(name, range(10_000, 11_500 if name != "lipsdp" else 10_100), NORMS if name == "trivial" else (2,))


# --- what a module computes -------------------------------------------------------------------------------------------


def linear(*rows: tuple[float, ...]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False).double()
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


@pytest.mark.parametrize("name", ["trivial", "eclipse-fast", "lipsdp-fast"])
@pytest.mark.parametrize(("gamma", "variance"), [(1e-162, 1.0), (8e-292, 9.9e232), (1e-320, 1e20)])
def test_a_batch_norm_whose_scale_underflows(name: str, gamma: float, variance: float) -> None:
    norm = nn.BatchNorm1d(1).double()
    norm.weight.data[:], norm.running_var[:] = gamma, variance
    net = nn.Sequential(linear((1.3e-162,)), norm, nn.ReLU(), linear((1e300,)), nn.ReLU(), linear((1e290,)))
    root = Fraction(math.isqrt(int((Fraction(variance) + Fraction(norm.eps)) * 10**40)) + 1, 10**20)
    constant = Fraction(1.3e-162) * Fraction(gamma) / root * Fraction(1e300) * Fraction(1e290)
    assert Fraction(bound(name, capture(net.eval()), 2).value) >= constant  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [2.0**-600, 3e-200, 1e-160])
def test_a_smooth_function_whose_factors_underflow(size: float) -> None:
    tiny = derive("tiny", ((Term("tanh", size, size),),))
    assert Fraction(tiny.slopes[0][1]) >= Fraction(size) ** 2
    assert Fraction(tiny.lipschitz[2]) >= Fraction(size) ** 2


# --- certified radii --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [5e-324, 1.5e-323, 3e-310, 1e-200, 1.0, 1.7e308])
@pytest.mark.parametrize("first", [1e-300, 1.0, 1e300])
def test_no_radius_reaches_a_tie(first: float, last: float) -> None:
    """With one input and no bias all classes tie at zero, so the radius at 1 is at most 1."""
    nodes = (
        Input("x", (), (1,)),
        Dense("first", (0,), (1,), torch.tensor([[first]], dtype=torch.float64)),
        Elementwise("act", (1,), (1,), activation("relu")),
        Dense("last", (2,), (2,), torch.tensor([[last], [0.0]], dtype=torch.float64)),
    )
    for p in NORMS:
        try:
            radius = float(certified_radii(Graph(nodes), torch.ones(1, 1).double(), torch.zeros(1).long(), p))
        except NumericalFailure:
            assert first * last > 1e300
            continue
        assert radius <= 1.0
        assert radius >= 0.999 or first * last < 1e-290 or first * last > 1e300, (first, last, p)


@pytest.mark.parametrize("seed", range(6))
def test_differences_of_rows_of_any_size(seed: int) -> None:
    draw = random.Random(seed)
    W = torch.tensor([[number(draw, -320.0, 307.0) for _ in range(3)] for _ in range(4)], dtype=torch.float64)
    W[1], W[2] = W[0], W[0]
    W[2, 1] = math.nextafter(float(W[2, 1]), math.inf)
    constant = abs(number(draw, -320.0, 150.0))
    for p, exponent in ((1, None), (2, 2), ("inf", 1)):
        found = difference_norms_up(W, {p: constant})
        for i, a in enumerate(W.tolist()):
            for j, b in enumerate(W.tolist()):
                gaps = [abs(Fraction(s) - Fraction(t)) for s, t in zip(a, b, strict=True)]
                least = max(gaps) if exponent is None else sum((g**exponent for g in gaps), Fraction(0))
                value = float(found[i, j])
                if math.isinf(value):
                    continue
                assert Fraction(value) ** (exponent or 1) >= least * Fraction(constant) ** (exponent or 1), (i, j, p)


# --- enclosures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_values_and_tangents_are_within_their_error(seed: int) -> None:
    graph = network(seed)
    draw = random.Random(seed)
    for scale in (1.0, 1e-310):
        x = torch.tensor([[scale * draw.uniform(-2.0, 2.0) for _ in range(graph.input_shape[0])]], dtype=torch.float64)
        at = exact(graph, [Fraction(v) for v in x[0].tolist()])
        if at is None:
            continue
        found = enclose(graph, x)
        for value, error, truth in zip(found.value[0].tolist(), found.error[0].tolist(), at[0], strict=True):
            if math.isfinite(value) and math.isfinite(error):
                assert abs(Fraction(value) - truth) <= Fraction(error), seed
        for j in range(graph.input_shape[0]):
            direction = torch.zeros_like(x)
            direction[0, j] = scale
            step = enclose_tangent(graph, x, direction)
            if not bool(step.sound):
                continue
            pairs = zip(step.tangent.value[0].tolist(), step.tangent.error[0].tolist(), at[1], strict=True)
            for value, error, row in pairs:
                if math.isfinite(value) and math.isfinite(error):
                    assert abs(Fraction(value) - row[j] * Fraction(scale)) <= Fraction(error), seed


def test_an_argument_that_loses_digits_before_a_large_weight() -> None:
    """Errors of a tiny input, which underflow themselves, are multiplied by the weight."""
    W = torch.tensor([[1e300, 3e299, -7e299]], dtype=torch.float64)
    graph = Graph((Input("x", (), (3,)), Dense("dense", (0,), (1,), W)))
    worst = Fraction(0)
    for seed in range(50):
        draw = random.Random(seed)
        x = torch.tensor([[draw.uniform(1.0, 9.0) * 1e-309 for _ in range(3)]], dtype=torch.float64)
        found = enclose(graph, x)
        truth = sum((Fraction(a) * Fraction(b) for a, b in zip(W[0].tolist(), x[0].tolist(), strict=True)), Fraction(0))
        miss = abs(Fraction(float(found.value)) - truth)
        worst = max(worst, miss)
        assert miss <= Fraction(float(found.error))
    assert worst > 0  # it does round


def test_a_part_of_a_chain_is_never_exact_by_a_quotient_that_underflows() -> None:
    """An error of 2^-1074 beside a weight of 1e300 is no error of zero."""
    W = torch.tensor([[1e300, 1e-200], [0.0, 1.0]], dtype=torch.float64)
    diagonal = torch.tensor([[0.0], [1e-200]], dtype=torch.float64)
    first = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    nodes: list[Node] = [Input("x", (), (1,)), Dense("first", (0,), (2,), first)]
    nodes.append(Conv("scale", (1,), (2,), diagonal, None, groups=2))
    nodes.append(Dense("second", (2,), (2,), W))
    nodes.append(Elementwise("act", (3,), (2,), activation("relu")))
    nodes.append(Dense("third", (4,), (1,), torch.tensor([[1e300, 0.0]], dtype=torch.float64)))
    graph = Graph(tuple(nodes))
    deeper = (*graph.nodes, Elementwise("again", (5,), (1,), activation("relu")))
    graph = replace(graph, nodes=(*deeper, Dense("last", (6,), (1,), torch.tensor([[1e100]], dtype=torch.float64))))
    constant = Fraction(1e-200) * Fraction(1e-200) * Fraction(1e300) * Fraction(1e100)
    proved = bound("eclipse-fast", graph, 2)
    assert proved is not None
    assert Fraction(proved.value) >= constant


@pytest.mark.parametrize("name", ["eclipse-fast", "lipsdp-fast"])
def test_an_activation_times_zero_is_constant(name: str) -> None:
    flat = derive("flat", ((Term("relu", 0.0),),))
    one = torch.ones(1, 1, dtype=torch.float64)
    nodes: list[Node] = [Input("x", (), (1,)), Dense("first", (0,), (1,), one), Elementwise("flat", (1,), (1,), flat)]
    nodes += [Dense("second", (2,), (1,), one), Elementwise("act", (3,), (1,), activation("relu"))]
    assert bound(name, Graph((*nodes, Dense("last", (4,), (1,), one))), 2) is not None
