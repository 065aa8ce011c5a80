"""Networks that normalise: every verifier of dense chains, against exact gradients and the same network folded."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge import Ball, Bound, Budget, Problem, Question
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise
from lipbridge.lipsdp.solve.batch import lipsdp_bounds
from tests.support.refusals import refused

Row = list[Fraction]
FAST = ["eclipse-fast", "lipsdp-fast"]
SLOW = ["lipsdp", "lipsdp-chordal", "lipsdp-layer", "eclipse"]
NORMALISED = ["shift", "vector", "scalar", "factor", "first", "middle", "behind", "last", "chained", "joined"]
SIZES = {"moderate": 1.0, "tiny": 2.0**-40 / 3.0, "huge": 3.0 * 2.0**40}


class Normalised(nn.Module):
    """``net((x - mean) / std)``, as far as the kind says."""

    def __init__(self, net: nn.Module, kind: str, size: float) -> None:
        super().__init__()
        self.net, self.kind = net, kind
        self.register_buffer("mean", torch.randn(3))
        self.register_buffer("std", (torch.rand(3) + 0.5) * size)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(
            {
                "shift": lambda: x - self.mean,
                "vector": lambda: (x - self.mean) / self.std,
                "factor": lambda: x * self.std,
                "scalar": lambda: (x - 0.1307) / 0.3081,
            }[self.kind]()
        )


def norm(width: int, size: float) -> nn.BatchNorm1d:
    layer = nn.BatchNorm1d(width)
    with torch.no_grad():
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2.0).mul_(min(size, 1e6) ** 2)
        layer.weight.normal_()
        layer.bias.normal_()
    return layer


def network(kind: str, size: float = 1.0, seed: int = 0, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """3 inputs, hidden layers of 4, one output; in eval mode."""
    torch.manual_seed(seed)
    first, second, last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
    plain = [first, act(), second, act(), last]
    if kind in ("shift", "vector", "scalar", "factor"):
        return Normalised(nn.Sequential(*plain), kind, size).eval()
    layers = {
        "first": [norm(3, size), *plain],
        "middle": [first, norm(4, size), act(), second, norm(4, 1.0), act(), last],
        "behind": [first, act(), norm(4, size), second, act(), last],
        "last": [*plain, norm(1, size)],
        "chained": [first, nn.Linear(4, 4), act(), second, norm(4, size), nn.Linear(4, 4), act(), last],
        "joined": [norm(3, size), first, act(), norm(4, size), second, norm(4, 1.0), act(), last],
    }
    return nn.Sequential(*layers[kind]).eval()


# --- the truth -------------------------------------------------------------------------------------------------------


def gradient(graph: Graph, point: Row) -> Row:
    """The exact gradient of a graph with relus and one output at a point (0 at kinks), in rationals."""
    n = len(point)
    values = [point]
    jacobians = [[[Fraction(int(i == j)) for j in range(n)] for i in range(n)]]
    for node in graph.nodes[1:]:
        (source,) = node.inputs
        z, J = values[source], jacobians[source]
        if isinstance(node, Dense | Conv):
            weight = node.weight if isinstance(node, Dense) else torch.diag(node.weight.flatten())
            W = [[Fraction(v) for v in row] for row in weight.tolist()]
            b = [Fraction(0)] * len(W) if node.bias is None else [Fraction(v) for v in node.bias.tolist()]
            z = [dot(row, values[source]) + shift for row, shift in zip(W, b, strict=True)]
            J = [[dot(row, column) for column in columns(J)] for row in W]
        elif isinstance(node, Elementwise) and node.linear:
            (component,) = node.activation.components
            slope = sum(Fraction(t.coefficient) * Fraction(t.scale) for t in component)
            z = [slope * v + sum(Fraction(t.coefficient) * Fraction(t.offset) for t in component) for v in z]
            J = [[slope * v for v in row] for row in J]
        elif isinstance(node, Elementwise):
            assert node.activation.name == "relu"
            J = [[v if s > 0 else Fraction(0) for v in row] for s, row in zip(z, J, strict=True)]
            z = [max(v, Fraction(0)) for v in z]
        values.append(z)
        jacobians.append(J)
    return jacobians[-1][0]


def dot(a: Row, b: Row) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def columns(matrix: list[Row]) -> list[Row]:
    return [list(column) for column in zip(*matrix, strict=True)]


def at_least(bound: Bound, graph: Graph, points: Tensor) -> None:
    """The bound is proved and above the exact norms of the gradients at some points, at tolerance zero."""
    assert bound.proved, bound
    value = Fraction(bound.value)
    for point in points.tolist():
        J = gradient(graph, [Fraction(v) for v in point])
        if bound.norm == "2":
            assert value**2 >= dot(J, J), bound
        else:
            assert value >= (sum(map(abs, J)) if bound.norm == "inf" else max(map(abs, J))), bound


def points_of(module: nn.Module, count: int = 40) -> Tensor:
    """Inputs at which the network's units switch: of the size of what it divides by."""
    size = float(module.std.mean()) if isinstance(module, Normalised) and module.kind == "vector" else 1.0
    first = module[0] if isinstance(module, nn.Sequential) else None
    if isinstance(first, nn.BatchNorm1d):
        size = float(first.running_var.sqrt().mean())
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * size


def folded(graph: Graph) -> nn.Sequential:
    """The network with all linear layers between two relus multiplied in plain float64."""
    layers: list[nn.Module] = []
    W, b = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)

    def finished() -> nn.Linear:
        layer = nn.Linear(W.shape[1], W.shape[0]).double()
        layer.weight.data, layer.bias.data = W.clone(), b.clone()
        return layer

    for node in graph.nodes[1:]:
        if isinstance(node, Dense | Conv):
            own = node.weight if isinstance(node, Dense) else torch.diag(node.weight.flatten())
            shift = torch.zeros(len(own)).double() if node.bias is None else node.bias
            W, b = own @ W, own @ b + shift
        elif isinstance(node, Elementwise) and node.linear:
            slope = node.activation(torch.ones(1, 1).double()) - node.activation(torch.zeros(1, 1).double())
            W, b = W * slope, node.activation(b[None])[0]
        elif isinstance(node, Elementwise):
            layers += [finished(), nn.ReLU()]
            n = len(W)
            W, b = torch.eye(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    return nn.Sequential(*layers, finished())


def bound_of(name: str, problem: Problem) -> Bound:
    verifier = lipbridge.get_verifier(name)
    assert refused(verifier, problem) is None
    return verifier.prepare(problem).bound(Budget(seconds=60.0))


# --- everywhere ------------------------------------------------------------------------------------------------------


CASES = [
    *((kind, "moderate", False) for kind in NORMALISED),
    *product(("vector", "joined"), SIZES, (True,)),
    *product(("vector", "last", "chained"), ("tiny", "huge"), (False,)),
]


@pytest.mark.parametrize(("kind", "size", "double"), CASES)
def test_everywhere(kind: str, size: str, double: bool) -> None:
    module = network(kind, SIZES[size])
    module = module.double() if double else module
    graph = lipbridge.capture(module, (3,))
    by_hand = lipbridge.capture(folded(graph), (3,))
    assert all(isinstance(node, Dense | Elementwise) for node in by_hand.nodes[1:])
    (batched,), (expected,) = lipsdp_bounds([graph], 50), lipsdp_bounds([by_hand], 50)
    pairs = [
        (batched, expected),
        *(
            (bound_of(n, Problem(graph, Question.everywhere(2))), bound_of(n, Problem(by_hand, Question.everywhere(2))))
            for n in FAST
        ),
    ]
    for found, plain in pairs:
        at_least(found, graph, points_of(module))
        assert found.value <= plain.value * (1 + 1e-6)
        assert found.value <= lipbridge.trivial_bound(graph).value * (1 + 1e-6) or kind in ("chained", "joined")


SOLVERS = [*SLOW, "geolip 1", "geolip inf"]
#: Every second pair, in turn, so that each solver and each kind is met, is in the ordinary suite.
PAIRS = [
    pytest.param(name, kind, marks=() if (i + j) % 2 == 0 else pytest.mark.slow)
    for i, name in enumerate(SOLVERS)
    for j, kind in enumerate(NORMALISED)
]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_everywhere_by_a_solver(name: str, kind: str) -> None:
    pytest.importorskip("cvxpy")
    module = network(kind)
    graph = lipbridge.capture(module, (3,))
    name, _, norm_name = name.partition(" ")
    p = {"": 2, "1": 1, "inf": "inf"}[norm_name]
    found = bound_of(name, Problem(graph, Question.everywhere(p)))
    at_least(found, graph, points_of(module))
    plain = bound_of(name, Problem(lipbridge.capture(folded(graph), (3,)), Question.everywhere(p)))
    assert found.value <= plain.value * (1 + 1e-4)


def test_a_shift_alone_changes_nothing() -> None:
    """It rounds a bias, which no bound everywhere reads."""
    module = network("shift")
    shifted, plain = lipbridge.capture(module, (3,)), lipbridge.capture(module.net, (3,))
    for name in FAST:
        assert (
            bound_of(name, Problem(shifted, Question.everywhere(2))).value
            == bound_of(name, Problem(plain, Question.everywhere(2))).value
        )


# --- on balls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "ball_norm"),
    [*((kind, "moderate", 2) for kind in NORMALISED)]
    + [(kind, *rest) for kind in ("vector", "joined") for rest in (("moderate", "inf"), ("tiny", 2), ("huge", 1))],
)
def test_on_balls(kind: str, size: str, ball_norm) -> None:
    module = network(kind, SIZES[size]).double()
    graph = lipbridge.capture(module, (3,))
    by_hand = lipbridge.capture(folded(graph), (3,))
    centers = points_of(module, 2)
    radius = 0.1 * float(centers.abs().mean())
    region = Ball(centers, radius, ball_norm)
    directions = torch.randn(30, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    p = math.inf if ball_norm == "inf" else float(ball_norm)
    inside = directions / directions.norm(p, dim=1, keepdim=True) * radius * 0.999
    for name in FAST:
        found, plain = (
            bound_of(name, Problem(graph, Question.on(region, 2))),
            bound_of(name, Problem(by_hand, Question.on(region, 2))),
        )
        at_least(found, graph, torch.cat([center + inside for center in centers]))
        assert found.value <= plain.value * (1 + 1e-6)
        assert found.value <= bound_of(name, Problem(graph, Question.everywhere(2))).value * (1 + 1e-9)


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("kind", ["shift", "vector", "scalar", "joined"])
def test_on_balls_by_a_solver(name: str, kind: str) -> None:
    pytest.importorskip("cvxpy")
    module = network(kind).double()
    graph = lipbridge.capture(module, (3,))
    centers = points_of(module, 2)
    problem = Problem(graph, Question.on(Ball(centers, 0.1, 2), 2))
    found = bound_of(name, problem)
    inside = torch.nn.functional.normalize(torch.randn(20, 3).double()) * 0.0999
    at_least(found, graph, torch.cat([center + inside for center in centers]))
    assert found.value <= bound_of("eclipse-fast", problem).value * (1 + 1e-4)


def test_intervals_on_a_ball_are_the_networks_own() -> None:
    """Folding ``x - 1e9`` into a bias rounds it by more than the interval's width: a unit would look constant."""
    layer = nn.Linear(1, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.1], [-0.1]], dtype=torch.float64))
        layer.bias.copy_(torch.tensor([1e-9, 1e-9], dtype=torch.float64))
    last = nn.Linear(2, 1, bias=False).double()
    last.weight.data.fill_(1.0)

    class Far(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(layer, nn.ReLU(), last)
            self.register_buffer("mean", torch.tensor([1e9], dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x - self.mean)

    graph = lipbridge.capture(Far(), (1,))
    center = torch.full((1, 1), 1e9, dtype=torch.float64)
    for name in FAST:
        found = bound_of(name, Problem(graph, Question.on(Ball(center, 1e-6, 2), 2)))
        at_least(found, graph, center + torch.tensor([[5e-7], [-5e-7], [0.0]], dtype=torch.float64))
