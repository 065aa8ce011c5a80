"""The exact checker: it agrees with torch in ordinary numbers, and it notices a bound that is one double too low."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lipbridge import Ball, Budget, trivial_bound
from lipbridge.activations.activation import Term
from lipbridge.activations.registry import recognise
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input
from lipbridge.robustness.radii import certified_radii
from lipbridge.verifiers.trivial import TrivialTask
from lipbridge.verifiers.witness import WitnessTask
from tests.support.attack import points
from tests.support.attack.judge import judge
from tests.support.attack.networks import FAMILIES, Case, draw
from tests.support.attack.truth import everywhere, in_balls
from tests.support.exact.convolution import convolved, spread
from tests.support.exact.jets import Stored
from tests.support.exact.lines import TooManyPieces, at_point, pieces
from tests.support.exact.norms import compared, definiteness, matrix_exceeds
from tests.support.exact.rationals import Rationals, common_unit, exact

TAME = ["dense", "tight", "leaky slopes", "convolutions", "branches"]


def floats(x: Rationals) -> torch.Tensor:
    return torch.tensor([float(value) for value in x.fractions()], dtype=torch.float64).reshape(x.shape)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TAME)
def test_values_and_jacobians_are_those_of_the_graph(family: str) -> None:
    for seed in range(25):
        graph = draw(family, seed).graph
        n = math.prod(graph.input_shape)
        x = torch.randn(1, *graph.input_shape, dtype=torch.float64)
        piece = at_point(Stored(graph), exact(x.flatten()), exact(torch.randn(n)))
        torch.testing.assert_close(floats(piece.value[:, 0]), graph(x).flatten())
        rows = torch.eye(n, dtype=torch.float64).reshape(n, *graph.input_shape)
        found = graph.tangent(x.expand_as(rows), rows)[1].flatten(1).T
        torch.testing.assert_close(floats(piece.jacobian), found)
        torch.testing.assert_close(floats(piece.slope), found @ floats(piece.direction))


@pytest.mark.parametrize(
    ("axes", "mode"), [(1, "zeros"), (2, "zeros"), (2, "circular"), (1, "reflect"), (2, "replicate")]
)
def test_convolutions_are_those_of_torch(axes: int, mode: str) -> None:
    space, kernel = (5, 6)[:axes], (3, 2)[:axes]
    stride, dilation, padding = (2, 1)[:axes], (1, 3)[:axes], ((2, 1), (0, 3))[:axes]
    x, weight = torch.randn(4, *space).double(), torch.randn(6, 2, *kernel).double()
    widths = [width for pair in reversed(padding) for width in pair]
    around = F.pad(x[None], widths, "constant" if mode == "zeros" else mode)
    function = {1: F.conv1d, 2: F.conv2d}[axes]
    expected = function(around, weight, None, stride, 0, dilation, 2)[0]
    found = convolved(exact(x).reshape(*x.shape, 1), exact(weight), stride, padding, dilation, 2, mode)
    torch.testing.assert_close(floats(found)[..., 0], expected)


def test_transposed_convolutions_are_those_of_torch() -> None:
    x, weight = torch.randn(4, 3, 4).double(), torch.randn(4, 3, 2, 3).double()
    layer = torch.nn.ConvTranspose2d(4, 6, (2, 3), (2, 1), (1, 0), (1, 0), 2, False, (3, 1)).double()
    layer.weight.data = weight
    padding = ((1, 0), (0, 0))  # torch's padding less its output_padding behind
    found = spread(exact(x).reshape(4, 3, 4, 1), exact(weight), (2, 1), padding, (3, 1), 2)
    torch.testing.assert_close(floats(found)[..., 0], layer(x[None])[0].detach())


# --- by hand ---------------------------------------------------------------------------------------------------------


def one_hump() -> Graph:
    """relu(x + 1) - 2 relu(x - 1): slopes 0, 1 and -1, with kinks at -1 and 1."""
    W, V = vector(1.0, 1.0)[:, None], vector(1.0, -2.0)[None]
    nodes = (
        Input("x", (), (1,)),
        Dense("a", (0,), (2,), W, vector(1.0, -1.0)),
        Elementwise("b", (1,), (2,), recognise(((Term("relu"),),)), 0),
        Dense("c", (2,), (1,), V),
    )
    return Graph(nodes)


def test_all_pieces_of_a_line_are_met() -> None:
    line = list(pieces(Stored(one_hump()), exact([0.0]), exact([1.0])))
    assert [piece.end for piece in line] == [-1, 1, None]
    assert [int(piece.jacobian.fractions()[0]) for piece in line] == [0, 1, -1]
    part = list(pieces(Stored(one_hump()), exact([0.0]), exact([1.0]), Fraction(-1), Fraction(1)))
    assert [int(piece.jacobian.fractions()[0]) for piece in part] == [1]
    with pytest.raises(TooManyPieces):
        list(pieces(Stored(one_hump()), exact([0.0]), exact([1.0]), most=2))


def test_a_line_along_a_border_sees_a_piece_beside_it() -> None:
    """relu(y) - relu(-y) on the line y = 0, where the formal derivative is zero on both sides."""
    W, V = torch.tensor([[0.0, 1.0], [0.0, -1.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    row = recognise(((Term("relu"),),))
    nodes = (Input("x", (), (2,)), Dense("a", (0,), (2,), W), Elementwise("b", (1,), (2,), row, 0))
    graph = Graph((*nodes, Dense("c", (2,), (1,), V)))
    (piece,) = pieces(Stored(graph), exact([0.0, 0.0]), exact([1.0, 0.0]))
    assert piece.jacobian.fractions() == [0, 1]


def test_in_balls_only_what_is_inside_counts() -> None:
    stored = Stored(one_hump())
    for radius, steepest in ((1.0, 0), (1.5, 1)):
        found = in_balls(stored, Ball(vector(-2.0)[None], radius, 2), 0)
        assert found.complete
        assert max(J.fractions()[0] for J in found.jacobians) == steepest


def test_norms_are_compared_to_the_last_bit() -> None:
    for values, p, q, size in (
        ([[3.0, 4.0]], 2, 2, 5.0),
        ([[3.0], [4.0]], 2, 2, 5.0),
        ([[3.0, 4.0]], 2, "inf", 5.0),
        ([[3.0], [-4.0]], 1, 2, 5.0),
        ([[1.0, -2.0], [3.0, 0.5]], 1, 1, 4.0),
        ([[1.0, -2.0], [3.0, 0.5]], "inf", "inf", 3.5),
        ([[1.0, -2.0], [3.0, 0.5]], 1, "inf", 3.0),
        ([[2.0, 0.0], [0.0, 1.0]], 2, 2, 2.0),
        ([[5e-324, 0.0]], 2, 2, 5e-324),
    ):
        J = exact(torch.tensor(values, dtype=torch.float64))
        assert compared(J, size, p, q) == 0
        assert compared(J, math.nextafter(size, 0.0), p, q) == 1
        assert compared(J, math.nextafter(size, math.inf), p, q) == -1
    both = exact(vector(1.0, 1.0))  # the root of two is between two doubles
    low, high = 1.4142135623730949, 1.4142135623730951
    assert compared(both.reshape(1, 2), low, 2, 2) == 1
    assert compared(both.reshape(2, 1), high, 2, 2) == -1
    assert not matrix_exceeds(both.reshape(1, 2), math.inf, 2, 2)


def test_definiteness() -> None:
    random = np.random.default_rng(0)
    seen = set()
    for n in range(1, 6):
        for _ in range(60):
            B = random.integers(-2, 3, (n, int(random.integers(1, n + 1))))
            A = B @ B.T + int(random.integers(-1, 2)) * np.eye(n, dtype=int)
            least = np.linalg.eigvalsh(A.astype(float))[0]
            expected = 0 if abs(least) < 1e-9 else int(np.sign(least))
            seen.add(expected)
            assert definiteness(A.astype(object)) == expected
    assert seen == {-1, 0, 1}
    assert definiteness(np.array([[0, 1], [1, 0]], dtype=object)) == -1


def test_rationals() -> None:
    third = exact([1.0, -2.0]).times(Fraction(1, 3))
    assert third.plus(exact([0.5, 1e-320])).fractions() == [Fraction(5, 6), Fraction(-2, 3) + Fraction(1e-320)]
    assert third.minus(third).reduced().fractions() == [0, 0]
    assert common_unit(Fraction(1, 6), Fraction(1, 4), Fraction(3)) == Fraction(1, 12)


# --- what is wrong is noticed ----------------------------------------------------------------------------------------


def violations(family: str, names: list[str], seeds: range) -> int:
    return sum(outcome.kind == "violated" for seed in seeds for outcome in judge(draw(family, seed), names))


def test_a_bound_that_is_a_few_doubles_too_low_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations("tight", ["trivial"], range(20)) == 0

    def lowered(self: TrivialTask, budget: Budget):
        bound = trivial_bound(self.problem.graph, self.problem.input_norm, self.problem.output_norm)
        return replace(bound, value=bound.value * (1.0 - 2.0**-49))

    monkeypatch.setattr(TrivialTask, "bound", lowered)
    assert violations("tight", ["trivial"], range(20)) >= 10


def test_a_lower_bound_above_its_witness_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = WitnessTask.bound
    assert violations("dense", ["witness"], range(2)) == 0

    def raised(self: WitnessTask, budget: Budget):
        bound = found(self, budget)
        return replace(bound, value=bound.value * (1.0 + 1e-12))

    monkeypatch.setattr(WitnessTask, "bound", raised)
    assert violations("dense", ["witness"], range(2)) >= 3


def test_a_radius_that_is_a_little_too_large_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a linear network: there the radius is the exact one but for rounding."""
    graph = Graph((Input("x", (), (2,)), Dense("a", (0,), (3,), torch.randn(3, 2).double())))
    case = Case("linear", 1, graph)
    assert all(outcome.kind == "held" for outcome in points.judge_points(case))
    monkeypatch.setattr(points, "certified_radii", lambda *given: certified_radii(*given) * (1.0 + 1e-3))
    assert any(outcome.kind == "violated" for outcome in points.judge_points(case))


def test_every_family_has_networks_that_are_known_completely() -> None:
    for family in FAMILIES:
        known = [everywhere(Stored(draw(family, seed).graph), seed, 1).complete for seed in range(6)]
        assert any(known), family
