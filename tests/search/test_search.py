"""The witness search: sound by its own arithmetic, exact where the constant is known, good where it is not."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipbridge.activations.activation import Activation, Term, derive
from lipbridge.activations.registry import activation, activation_names
from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.frontend.capture import capture
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Add, Concat, Dense, Elementwise, Input, Node
from lipbridge.layers.layers import mlp
from lipbridge.norms import operator_norm
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball, Question
from lipbridge.problem.verifier import Budget, Verifier
from lipbridge.rigor.accuracy import ACCURACY
from lipbridge.rigor.running_error import enclose
from lipbridge.rigor.tangent_error import enclose_tangent
from lipbridge.search import search_lower_bound, witness_value
from lipbridge.search.ascent import Climb, ascent_step, deviation_step
from lipbridge.search.domain import Balls, Everywhere
from lipbridge.training.penalty import TrivialBoundPenalty
from lipbridge.verifiers.witness import WitnessVerifier
from lipbridge.vocabulary import NORMS, Norm, Quantity, Side, exponent
from tests.support.functions import SMOOTH
from tests.support.refusals import refused

PAIRS = list(itertools.product(NORMS, NORMS))
QUICK = {"restarts": 8, "steps": 30, "rounds": 2}


def network(widths: list[int], name: str = "abs", bias: bool = False, seed: int = 0) -> Graph:
    torch.manual_seed(seed)
    return capture(mlp(widths, name, bias=bias))


def dense_chain(matrices: list[Tensor], g: Activation) -> Graph:
    """The bias-free chain with these weights."""
    nodes: list[Input | Dense | Elementwise] = [Input("input", (), (matrices[0].shape[1],))]
    for index, W in enumerate(matrices):
        if index:
            nodes.append(Elementwise(f"g{index}", (len(nodes) - 1,), (nodes[-1].shape[0] * g.width,), g))
        nodes.append(Dense(f"dense{index}", (len(nodes) - 1,), (W.shape[0],), W.double()))
    return Graph(tuple(nodes))


def plain_value(problem: Problem, witness: Witness) -> float:
    """The witness's value by nothing but autograd and vector norms: what anybody would compute."""
    p, q = exponent(problem.input_norm), exponent(problem.output_norm)
    if witness.direction is None:
        x, y = witness.points
        f = problem.graph(witness.points)
        distance = float(torch.linalg.vector_norm((x - y).flatten(), p))
        if problem.quantity is Quantity.DEVIATION:
            assert problem.region is not None
            distance = problem.region.radius
        return float(torch.linalg.vector_norm(f[0] - f[1], q)) / distance
    J = torch.autograd.functional.jacobian(lambda x: problem.graph(x[None])[0], witness.points[0])
    v = witness.direction[0]
    return float(torch.linalg.vector_norm(J @ v, q) / torch.linalg.vector_norm(v, p))


# --- known constants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), CHEAP_PAIRS)
def test_linear_network_is_exact(p: Norm, q: Norm) -> None:
    W = torch.randn(7, 12, dtype=torch.float64)
    bound = search_lower_bound(Problem(dense_chain([W], activation("abs")), Question.everywhere(p, q)), **QUICK)
    assert bound.value == pytest.approx(float(operator_norm(W, p, q)), rel=1e-12)


@pytest.mark.parametrize(("p", "q"), [pair for pair in PAIRS if pair not in CHEAP_PAIRS])
def test_linear_network_in_hard_norms(p: Norm, q: Norm) -> None:
    # The maximum is at a sign vector: of the inputs for p = inf, of the outputs (by duality) for q = 1.
    W = torch.randn(6, 9, dtype=torch.float64)
    M, r = (W, exponent(q)) if p == "inf" else (W.T, 2.0)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=M.shape[1])), dtype=torch.float64)
    exact = float(torch.linalg.vector_norm(signs @ M.T, r, dim=1).max())
    bound = search_lower_bound(Problem(dense_chain([W], activation("abs")), Question.everywhere(p, q)), **QUICK)
    assert bound.value <= exact * (1 + 1e-12)
    assert bound.value >= exact * 0.98


@pytest.mark.parametrize("p", NORMS)
def test_nonnegative_relu_network_is_exact(p: Norm) -> None:
    matrices = [torch.rand(m, n, dtype=torch.float64) for n, m in ((15, 20), (20, 20), (20, 6))]
    exact = float(operator_norm(matrices[2] @ matrices[1] @ matrices[0], p))
    bound = search_lower_bound(Problem(dense_chain(matrices, activation("relu")), Question.everywhere(p)), **QUICK)
    assert exact * (1 - 1e-6) <= bound.value <= exact * (1 + 1e-12)


@pytest.mark.parametrize("name", ["abs", "relu", "crelu", "leaky_relu", "identity_abs"])
@pytest.mark.parametrize("p", NORMS)
def test_plane_homogeneous_networks_reach_the_enumerated_constant(name: str, p: Norm) -> None:
    # Of a bias-free network on the plane every activation pattern is an arc of directions: a fine circle sees all.
    graph = network([2, 8, 8, 3], name, seed=3)
    angles = torch.linspace(0, 2 * math.pi, 40_001, dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    columns = [graph.tangent(x, e.expand_as(x))[1] for e in torch.eye(2, dtype=torch.float64)]
    exact = float(operator_norm(torch.stack(columns, dim=2), p).max())
    bound = search_lower_bound(Problem(graph, Question.everywhere(p)), restarts=16, steps=50)
    assert bound.value >= exact * (1 - 1e-9)


@pytest.mark.parametrize("name", ["abs", "relu", "sin", "tanh", "sincos"])
def test_plane_networks_with_bias_reach_a_fine_grid(name: str) -> None:
    graph = network([2, 6, 6, 2], name, bias=True, seed=5)
    axis = torch.linspace(-8, 8, 400, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    columns = [graph.tangent(x, e.expand_as(x))[1] for e in torch.eye(2, dtype=torch.float64)]
    exact = float(operator_norm(torch.stack(columns, dim=2), 2).max())
    bound = search_lower_bound(Problem(graph, Question.everywhere(2)), restarts=16, steps=60)
    assert bound.value >= exact * 0.999


def test_bound_trained_digits_are_tight() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16.0, torch.tensor(data.target)
    module = mlp([64, 32, 32, 10], "abs", bias=False)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=400)
    penalty = TrivialBoundPenalty(module, every=4)  # large steps: the bound must be tight for the search to show it
    for _ in range(400):
        loss = nn.functional.cross_entropy(module(x), y) + 0.05 * penalty()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    graph = capture(module)
    bound = search_lower_bound(Problem(graph, Question.everywhere(2)), x)
    assert trivial_bound(graph).value / bound.value < 1.05


# --- soundness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize("name", ["abs", "relu", "sincos", "gelu"])
def test_witness_reproduces_the_value(name: str, p: Norm, q: Norm) -> None:
    problem = Problem(network([9, 11, 7, 5], name, bias=True), Question.everywhere(p, q))
    bound = search_lower_bound(problem, **QUICK)
    assert bound.side is Side.LOWER
    assert bound.proved
    assert bound.witness is not None
    assert witness_value(problem, bound.witness) == bound.value
    assert bound.value == pytest.approx(plain_value(problem, bound.witness), rel=1e-9)
    if (p, q) in CHEAP_PAIRS:
        assert bound.value <= trivial_bound(problem.graph, p, q).value


@settings(max_examples=25)
@given(
    name=st.sampled_from(activation_names()),
    widths=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    scale=st.sampled_from([1e-60, 1e-3, 1.0, 1e3, 1e60]),
    pair=st.sampled_from(CHEAP_PAIRS),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_never_above_the_trivial_bound(
    name: str, widths: list[int], scale: float, pair: tuple[Norm, Norm], bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    module = mlp(widths, name, bias=bias).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale).mul_(torch.rand(()) < 0.9)
    graph = capture(module)
    bound = search_lower_bound(Problem(graph, Question.everywhere(*pair)), restarts=4, steps=10, rounds=1)
    assert 0.0 <= bound.value <= trivial_bound(graph, *pair).value


@pytest.mark.parametrize("scale", [1e-140, 1e-20, 1e20, 1e140])
def test_size_of_the_weights_does_not_matter(scale: float) -> None:
    matrices = [torch.randn(6, 8, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)]
    values = [
        search_lower_bound(
            Problem(dense_chain([s * W for W in matrices], activation("relu")), Question.everywhere(2)), **QUICK
        ).value
        for s in (1.0, scale)
    ]
    assert values[1] / scale / scale == pytest.approx(values[0], rel=1e-2)


def test_derivative_at_a_kink_is_no_witness() -> None:
    # x - relu(x) + relu(-x) is zero, but its pieces' derivatives at zero add up to one.
    zero = derive("zero", ((Term("identity"), Term("relu", -1.0), Term("relu", 1.0, -1.0)),))
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = Problem(dense_chain([one, one], zero), Question.everywhere(2))
    at_kink = Witness(torch.zeros(1, 1, dtype=torch.float64), one)
    assert float(problem.graph.tangent(at_kink.points, one)[1]) == 1.0
    with pytest.raises(InvalidArgument, match="kink"):
        witness_value(problem, at_kink)
    assert search_lower_bound(problem, torch.zeros(5, 1), **QUICK).value == 0.0


def test_same_kink_across_branches_is_no_witness() -> None:
    eye = torch.eye(1, dtype=torch.float64)
    nodes = (
        Input("x", (), (1,)),
        Dense("plus", (0,), (1,), eye),
        Dense("minus", (0,), (1,), -eye),
        Elementwise("relu+", (1,), (1,), activation("relu")),
        Elementwise("relu-", (2,), (1,), activation("relu")),
        Concat("both", (3, 4), (2,)),
        Dense("difference", (5,), (1,), torch.tensor([[-1.0, 1.0]], dtype=torch.float64)),
        Add("sum", (0, 6), (1,)),
    )
    problem = Problem(Graph(nodes), Question.everywhere(2))
    with pytest.raises(InvalidArgument, match="kink"):
        witness_value(problem, Witness(torch.zeros(1, 1), torch.ones(1, 1)))
    assert search_lower_bound(problem, torch.zeros(3, 1), **QUICK).value == 0.0


def test_dead_network_has_value_zero() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    nodes = (
        Input("x", (), (1,)),
        Dense("first", (0,), (1,), one),
        Elementwise("g", (1,), (1,), activation("relu")),
        Dense("second", (2,), (1,), -one, -one[0]),
        Elementwise("h", (3,), (1,), activation("relu")),
        Dense("last", (4,), (1,), one),
    )
    bound = search_lower_bound(Problem(Graph(nodes), Question.everywhere(2)), **QUICK)
    assert (bound.value, bound.proved) == (0.0, True)


def test_units_that_are_constant_may_sit_on_their_kink() -> None:
    W = torch.randn(6, 4, dtype=torch.float64)
    W[2:4] = 0.0  # their pre-activation is zero everywhere
    V = torch.randn(3, 6, dtype=torch.float64)
    graph = dense_chain([W, V, torch.eye(3, dtype=torch.float64)], activation("abs"))
    assert search_lower_bound(Problem(graph, Question.everywhere(2)), **QUICK).value > 0.0


def test_networks_that_vanish() -> None:
    graph = dense_chain([torch.zeros(3, 4), torch.zeros(2, 3)], activation("abs"))
    for p, q in PAIRS:
        assert search_lower_bound(Problem(graph, Question.everywhere(p, q)), **QUICK).value == 0.0


# --- regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ball_norm", NORMS)
@pytest.mark.parametrize("quantity", list(Quantity))
def test_ball_witness_is_inside_and_reproducible(ball_norm: Norm, quantity: Quantity) -> None:
    graph = network([6, 10, 4], "relu", bias=True)
    ball = Ball(torch.randn(3, 6, dtype=torch.float64), 0.3, ball_norm)
    problem = Problem(graph, Question.on(ball, ball_norm, 2 if ball_norm != "inf" else "inf", quantity=quantity))
    bound = search_lower_bound(problem, **QUICK)
    assert bound.witness is not None
    offsets = (bound.witness.points[-1] - ball.centers).numpy()
    assert min(torch.linalg.vector_norm(torch.tensor(o), exponent(ball_norm)) for o in offsets) <= ball.radius
    assert witness_value(problem, bound.witness) == bound.value
    assert bound.value == pytest.approx(plain_value(problem, bound.witness), rel=1e-9)
    everywhere = search_lower_bound(
        replace(problem, question=replace(problem.question, region=None, quantity=Quantity.LIPSCHITZ)), restarts=16
    )
    assert 0.0 < bound.value <= everywhere.value * (1 + 1e-6)


@pytest.mark.parametrize("p", NORMS)
def test_deviation_of_a_linear_network_is_its_norm(p: Norm) -> None:
    W = torch.randn(5, 7, dtype=torch.float64)
    ball = Ball(torch.randn(2, 7, dtype=torch.float64), 2.0, p)
    problem = Problem(dense_chain([W], activation("abs")), Question.on(ball, p, quantity=Quantity.DEVIATION))
    exact = float(operator_norm(W, p))
    value = search_lower_bound(problem, restarts=32, steps=200).value
    assert exact * 0.99 <= value <= exact


def test_points_outside_the_region_prove_nothing() -> None:
    ball = Ball(torch.zeros(1, 3, dtype=torch.float64), 1.0, 2)
    problem = Problem(network([3, 4, 2]), Question.on(ball, 2))
    with pytest.raises(InvalidArgument, match="region"):
        witness_value(problem, Witness(torch.full((1, 3), 0.9), torch.ones(1, 3)))
    with pytest.raises(InvalidArgument, match="region"):
        witness_value(problem, Witness(torch.tensor([[0.0, 0, 0], [2.0, 0, 0]])))
    pair = Witness(torch.tensor([[0.0, 0, 0], [0.5, 0, 0]]))
    assert witness_value(problem, pair) == pytest.approx(plain_value(problem, Witness(pair.points.double())), rel=1e-9)
    with pytest.raises(InvalidArgument):
        witness_value(problem, Witness(torch.zeros(2, 3)))


def test_one_bent_ball_sees_only_its_own_slope() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    graph = dense_chain([one, one], activation("relu"))
    dead, alive = torch.tensor([[-1.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    assert search_lower_bound(Problem(graph, Question.on(Ball(dead, 0.5, 2), 2)), **QUICK).value == 0.0
    assert search_lower_bound(Problem(graph, Question.on(Ball(alive, 0.5, 2), 2)), **QUICK).value == pytest.approx(1.0)
    both = Ball(torch.cat([dead, alive]), 0.5, 2)
    assert search_lower_bound(Problem(graph, Question.on(both, 2)), **QUICK).value == pytest.approx(1.0)


# --- running errors, against exact arithmetic ------------------------------------------------------------------------


def exact_relu_chain(matrices: list[Tensor], x: Tensor, v: Tensor) -> tuple[list[Fraction], list[Fraction]]:
    """Value and tangent of a bias-free ReLU chain in exact rational arithmetic."""
    h, t = [Fraction(float(c)) for c in x], [Fraction(float(c)) for c in v]
    for index, W in enumerate(matrices):
        rows = [[Fraction(float(w)) for w in row] for row in W]
        if index:
            t = [b if a > 0 else Fraction(0) for a, b in zip(h, t, strict=True)]
            h = [max(a, Fraction(0)) for a in h]
        h, t = ([sum(w * a for w, a in zip(row, vector, strict=True)) for row in rows] for vector in (h, t))
    return h, t


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_enclosures_hold_in_exact_arithmetic(scale: float) -> None:
    matrices = [scale * torch.randn(m, n, dtype=torch.float64) for n, m in ((6, 9), (9, 9), (9, 3))]
    graph = dense_chain(matrices, activation("relu"))
    x, v = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    enclosed = enclose_tangent(graph, x, v)
    assert bool(enclosed.sound.all())
    for i in range(len(x)):
        for exact, found in zip(
            exact_relu_chain(matrices, x[i], v[i]), (enclosed.primal, enclosed.tangent), strict=True
        ):
            for j, number in enumerate(exact):
                error = abs(number - Fraction(float(found.value[i, j])))
                assert error <= Fraction(float(found.error[i, j]))
                assert float(found.error[i, j]) <= 1e-12 * scale**3


@pytest.mark.parametrize("name", activation_names())
def test_activation_enclosures_hold_against_many_digits(name: str) -> None:
    g = activation(name)
    graph = Graph((Input("x", (), (1,)), Elementwise("g", (0,), (g.width,), g)))
    points = [1e-300, 1e-9, 0.3, 1.0, 1.5707963267948966, 3.7, 19.99, 20.5, 40.0, 1e3, 12345.678]
    x = torch.tensor([[s * t] for t in points for s in (1.0, -1.0)], dtype=torch.float64)
    value = enclose(graph, x)
    slope = enclose_tangent(graph, x, torch.ones_like(x))
    with mpmath.workdps(80):
        for i, k in itertools.product(range(len(x)), range(g.width)):

            def exact(t: mpmath.mpf, component: tuple[Term, ...] = g.components[k]) -> mpmath.mpf:
                return mpmath.fsum(
                    mpmath.mpf(term.coefficient) * SMOOTH[term.function](term.scale * t + term.offset, *term.parameters)
                    for term in component
                )

            t = mpmath.mpf(float(x[i, 0]))
            assert abs(exact(t) - float(value.value[i, k])) <= float(value.error[i, k])
            if abs(t) < 1e-200:
                continue  # too small for a difference quotient in these digits
            h = abs(t) * mpmath.mpf(10) ** -18  # central difference, exact to far below float64
            derivative = (exact(t + h) - exact(t - h)) / (2 * h)
            found = slope.tangent
            assert abs(derivative - float(found.value[i, k])) <= float(found.error[i, k]) + 1e-30


def test_every_scalar_function_has_its_accuracy() -> None:
    from lipbridge.activations.scalar_functions import SCALAR_FUNCTIONS

    assert set(SCALAR_FUNCTIONS) == set(ACCURACY) == set(SMOOTH)


# --- the step, the verifier, bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), PAIRS)
@pytest.mark.parametrize("name", ["abs", "crelu", "sincos"])
def test_a_step_never_waits_for_the_device(name: str, p: Norm, q: Norm) -> None:
    # A tensor on the meta device has no values: any look at one raises.
    graph = network([5, 6, 3], name, bias=True).to("meta")
    x = torch.empty(4, 5, dtype=torch.float64, device="meta")
    for domain in (Everywhere(True), Everywhere(False), *(Balls(x, 0.5, norm) for norm in NORMS)):
        state = ascent_step(graph, Climb.start(x, x), domain, p, q, 0.5, 0.1)
        assert (state.x.shape, state.v.shape, state.x.device.type) == (x.shape, x.shape, "meta")
    outputs = torch.empty(4, 3, dtype=torch.float64, device="meta")
    state = deviation_step(graph, Climb.start(x, x), Balls(x, 0.5, 2), outputs, q, 0.1)
    assert state.x.shape == x.shape


def test_same_seed_same_bound() -> None:
    problem = Problem(network([8, 12, 4], "relu", bias=True), Question.everywhere(2))
    first, second = (search_lower_bound(problem, seed=7, **QUICK) for _ in range(2))
    assert first.value == second.value
    assert first.witness is not None
    assert second.witness is not None
    assert torch.equal(first.witness.points, second.witness.points)


def test_time_is_kept() -> None:
    bound = search_lower_bound(
        Problem(network([50, 60, 60, 5]), Question.everywhere(2)), seconds=0.2, restarts=64, steps=10_000, rounds=50
    )
    assert bound.value > 0.0
    assert bound.seconds < 5.0


def test_verifier() -> None:
    verifier = WitnessVerifier()
    assert isinstance(verifier, Verifier)
    problem = Problem(network([6, 8, 3]), Question.everywhere(2))
    assert refused(verifier, problem) is None
    options: dict[str, object] = {"starts": torch.randn(4, 6), "restarts": 4, "steps": 10}
    bound = verifier.prepare(problem).bound(Budget(options=options))
    assert bound.proved
    assert bound.value > 0.0
    for wrong in ({"starts": 3}, {"restarts": 0}, {"steps": 1.5}, {"starts": torch.zeros(2, 5)}):
        with pytest.raises(InvalidArgument):
            verifier.prepare(problem).bound(Budget(options=wrong))


def test_layers_of_unknown_rounding_are_refused() -> None:
    class Pool(Node):
        """A layer of somebody else's."""

    graph = Graph((Input("x", (), (1, 4)), Pool("pool", (0,), (1, 2))))
    assert "pool" in (refused(WitnessVerifier(), Problem(graph, Question.everywhere(2))) or "")
    with pytest.raises(UnsupportedProblem, match="pool"):
        search_lower_bound(Problem(graph, Question.everywhere(2)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_errors(bad: float) -> None:
    W = torch.eye(3, dtype=torch.float64)
    with pytest.raises(NumericalFailure):
        search_lower_bound(Problem(dense_chain([W * bad], activation("abs")), Question.everywhere(2)))
    with pytest.raises(NumericalFailure):
        search_lower_bound(
            Problem(dense_chain([W], activation("abs")), Question.everywhere(2)), torch.full((2, 3), bad)
        )
    with pytest.raises(InvalidArgument):
        search_lower_bound(Problem(dense_chain([W], activation("abs")), Question.everywhere(2)), torch.zeros(2, 4))


def test_no_derivative_is_taken_where_the_argument_rounds_across_its_kink() -> None:
    """At x the float argument ``s x - a`` is on one side of the kink and exact arithmetic may be on the other."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        s, x = (0.5 + torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        activation = derive("kink", ((Term("leaky_relu", 1.0, s, -math.nextafter(s * x, 0.0), (2.0,)),),))
        graph = Graph((Input("x", (), (1,)), Elementwise("kink", (0,), (1,), activation, -1)))
        for at, certain in ((x, False), (x * 1.001, True), (x * 0.999, True)):
            point = torch.tensor([[at]], dtype=torch.float64)
            assert bool(enclose_tangent(graph, point, torch.ones_like(point)).sound) == certain
