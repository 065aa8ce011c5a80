"""LipSDP on balls: sound against everything that can be computed there, and really local."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipbridge import Ball, Problem, Question, search_lower_bound
from lipbridge.activations.activation import Term as T
from lipbridge.activations.activation import derive
from lipbridge.activations.registry import activation, activation_names
from lipbridge.activations.slopes import component_range
from lipbridge.errors import InvalidArgument, NumericalFailure
from lipbridge.lipsdp.dense_problem import local_intervals, local_systems
from lipbridge.lipsdp.multipliers import prove_from_multipliers
from lipbridge.lipsdp.proof import prove
from lipbridge.lipsdp.unit_slopes import is_joint, unit_rule
from lipbridge.verifiers import Budget, get_verifier
from lipbridge.verifiers.eclipse_fast import EclipseFastVerifier
from lipbridge.verifiers.lipsdp_fast import LipSDPFastVerifier
from lipbridge.vocabulary import NORMS, Status
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import graph_of

FAST, CLOSED = LipSDPFastVerifier(), EclipseFastVerifier()
GAP = 1e-4
BUDGET = Budget(seconds=60.0, options={"gap": GAP})
PLAIN = Budget(seconds=60.0)
NAMES = activation_names()


def on(graph, centers, radius, norm=2) -> Problem:
    return Problem(graph, Question.on(Ball(torch.as_tensor(centers, dtype=torch.float64), radius, norm), 2))


def jacobians(module, x) -> torch.Tensor:
    return torch.stack([torch.autograd.functional.jacobian(module, point) for point in x])


# --- the rule of each unit -------------------------------------------------------------------------------------------


ROWS = [activation(name) for name in NAMES]
ROWS.append(derive("sin, 0.7 relu", ((T("sin"),), (T("relu", 0.7),))))
ROWS.append(derive("relu - shifted relu", ((T("relu"), T("relu", -1.0, 1.0, 1.0)),)))
ROWS.append(derive("relu, shifted relu", ((T("relu"),), (T("relu", 0.5, -3.0, 1.0), T("identity", 0.2)))))
ROWS.append(
    derive("leaky, mirrored leaky", ((T("leaky_relu", parameters=(0.3,)),), (T("leaky_relu", 1.0, -2.0, 0.0, (0.3,)),)))
)
ROWS.append(derive("0.3 t + 0.1 sin, tanh", ((T("identity", 0.3), T("sin", 0.1, 3.0, 0.2)), (T("tanh"),))))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("width", [1e-13, 1e-6, 0.1, 2.0])
def test_increments_of_each_unit_obey_its_rule(row, joint, width) -> None:
    """The blocks' sum with W = the unit matrix reproduces y from z and some |q| <= |z|."""
    middle = torch.tensor([-3.0, -0.5, 0.0, 0.05, 1.3, 40.0], dtype=torch.float64)
    lower, upper = middle - width, middle + width
    rule = unit_rule(row, lower, upper, joint=joint)
    if rule is None:
        return
    K, E = row.width, rule.increments.outputs
    generator = torch.Generator().manual_seed(0)
    s, t = (lower + (upper - lower) * torch.rand(500, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    s[0], t[0] = lower, upper
    z = s - t
    y = (row(s) - row(t)).reshape(500, K, 6)
    J = rule.increments.variables
    combine, unknown = torch.zeros(K, 1 + J, 6, dtype=torch.float64), torch.zeros(K, 6, dtype=torch.float64)
    for (k, factors), outputs, radius in zip(rule.blocks, E, rule.increments.radius, strict=True):
        combine[k] += outputs[:, None] * factors
        unknown[k] += radius[0] * factors
    rest = y - combine[:, 0] * z[:, None]
    room = 1e-14 * (1 + y.abs() + row(s).reshape(500, K, 6).abs()) + unknown * z.abs()[:, None]
    if J == 0:
        assert float((rest.abs() - room).max()) <= 0
        return
    for unit in range(6):
        R = combine[:, 1:, unit]
        q = torch.linalg.pinv(R) @ rest[:, :, unit].T  # R may lack a rank
        assert bool(((R @ q - rest[:, :, unit].T).abs() <= room[:, :, unit].T * 2 + 1e-13).all())
        size = torch.where(R.abs().amax(0) > 0, R.abs().amax(0), 1.0)
        slack = (1e-13 + unknown[:, unit].max() * z[:, unit].abs()) / size[:, None]
        assert bool((q.abs() <= z[:, unit].abs() * (1 + 1e-9) + slack * 4).all())


def test_fixed_units_are_lines_and_dead_ones_are_dropped() -> None:
    rule = unit_rule(
        activation("relu"), torch.tensor([1.0, -2.0, -1.0]).double(), torch.tensor([2.0, -1.0, 1.0]).double()
    )
    assert rule is not None
    assert rule.free.tolist() == [False, False, True]
    assert rule.alive.tolist() == [[True, False, True]]
    assert [name for name in NAMES if is_joint(activation(name))] == ["sincos"]


@pytest.mark.parametrize("name", NAMES)
def test_huge_intervals_have_the_global_rule(name) -> None:
    ends = torch.full((3,), 1e6, dtype=torch.float64)
    assert unit_rule(activation(name), -ends, ends) is None


def test_the_steepest_of_many_balls_counts_wherever_it_stands() -> None:
    """More balls than are looked at together; small ones, whose constant is the Jacobian's norm at the centre."""
    module = network(5, 4, ("relu",), width=7)
    graph = graph_of(module)
    generator = torch.Generator().manual_seed(3)
    centers = 2.0 * torch.randn(11, *graph.input_shape, generator=generator, dtype=torch.float64)
    norms = torch.linalg.matrix_norm(jacobians(module, centers), 2)
    assert float(norms.max()) > 1.01 * float(norms.median())
    for place in range(11):
        order = torch.roll(norms.argsort(), place + 1)
        for verifier in (CLOSED, FAST):
            bound = verifier.prepare(on(graph, centers[order], 1e-9)).bound(PLAIN if verifier is CLOSED else BUDGET)
            assert float(norms.max()) * (1 - 1e-12) <= bound.value
            assert bound.extra["ball"] == place


def test_the_norm_of_a_ball_is_the_balls() -> None:
    """One unit that is active in a corner of the cube alone, which lies outside of the round ball."""
    module = nn.Sequential(nn.Linear(4, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
        module[0].bias.fill_(-3.9)
    graph = graph_of(module)
    for verifier in (CLOSED, FAST):
        assert (
            verifier.prepare(on(graph, torch.zeros(1, 4), 1.0, 2)).bound(PLAIN if verifier is CLOSED else BUDGET).value
            < 1e-100
        )
        assert (
            2.0
            <= verifier.prepare(on(graph, torch.zeros(1, 4), 1.0, "inf"))
            .bound(PLAIN if verifier is CLOSED else BUDGET)
            .value
            <= 2.0 + 1e-9
        )


# --- against what can be computed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), [(name, NORMS[i % 3]) for i, name in enumerate(NAMES)])
def test_never_below_witnesses_and_sampled_jacobians_in_the_ball(name, norm) -> None:
    module = network(5, 4, (name, "tanh" if name != "tanh" else "relu"), width=7)
    graph = graph_of(module)
    generator = torch.Generator().manual_seed(3)
    center = torch.randn(1, *graph.input_shape, generator=generator, dtype=torch.float64)
    for radius in (1e-3, 0.3):
        problem = on(graph, center, radius, norm)
        found = [CLOSED.prepare(problem).bound(PLAIN).value, FAST.prepare(problem).bound(BUDGET).value]
        witness = search_lower_bound(problem, seconds=5, restarts=8, steps=20, rounds=1).value
        step = torch.rand(40, *graph.input_shape, generator=generator, dtype=torch.float64) * 2 - 1
        step = step * (radius / step[0].numel())
        sampled = torch.linalg.matrix_norm(jacobians(module, center + step), 2).max()
        assert max(witness, float(sampled) * (1 - 1e-9)) <= min(found)
        assert found[1] <= found[0] * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_never_below_the_exact_constant_of_tiny_relu_networks(seed) -> None:
    """Every activation pattern that some point of a fine grid of the ball has, and its neighbours on the kinks."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    graph = graph_of(module)
    center = torch.randn(1, 2, dtype=torch.float64)
    line = torch.linspace(-1, 1, 301, dtype=torch.float64) * 0.5
    grid = center + torch.cartesian_prod(line, line)
    W = [layer.weight.detach() for layer in module if isinstance(layer, nn.Linear)]
    values = graph.values(grid)
    patterns = torch.cat([(values[1] > 0), (values[3] > 0)], 1).unique(dim=0)
    products = [W[2] @ torch.diag(p[5:].double()) @ W[1] @ torch.diag(p[:5].double()) @ W[0] for p in patterns]
    exact = float(torch.linalg.matrix_norm(torch.stack(products), 2).max())
    bound = FAST.prepare(on(graph, center, 0.5, "inf")).bound(BUDGET).value
    assert exact <= bound
    assert bound <= FAST.prepare(Problem(graph, Question.everywhere(2))).bound(BUDGET).value * (1 + GAP)


def test_a_kink_exactly_on_the_boundary_of_the_ball_counts() -> None:
    """f = relu on [-1, 0]: the Clarke derivative at 0 is [0, 1]."""
    module = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for layer in (module[0], module[2]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    graph = graph_of(module)
    assert FAST.prepare(on(graph, [[-1.0]], 1.0)).bound(BUDGET).value >= 1.0
    assert FAST.prepare(on(graph, [[-1.0]], 0.999)).bound(BUDGET).value == 0.0
    assert FAST.prepare(on(graph, [[1.0]], 1.0)).bound(BUDGET).value >= 1.0


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 5),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(FLAVOURS),
    factor=st.sampled_from([1e-200, 1e-100, 1e-20, 1e20, 1e80]),
)
def test_nasty_weights(seed, depth, names, flavour, factor) -> None:
    module = network(seed, depth, names, flavour)
    with torch.no_grad():
        module[0].weight.mul_(factor)
    graph = graph_of(module)
    problem = on(graph, torch.ones(1, *graph.input_shape), 0.1)
    try:
        values = [CLOSED.prepare(problem).bound(PLAIN).value, FAST.prepare(problem).bound(BUDGET).value]
    except NumericalFailure:
        assert factor > 1
        return
    witness = search_lower_bound(problem, seconds=5, restarts=4, steps=8, rounds=1).value
    assert witness <= min(values)


# --- local, and monotone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_ball_has_the_norm_of_the_jacobian(name) -> None:
    module = network(11, 4, (name,), width=8)
    graph = graph_of(module)
    center = torch.randn(1, *graph.input_shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = float(torch.linalg.matrix_norm(jacobians(module, center), 2).max())
    assert exact > 0
    for verifier in (FAST, CLOSED):
        bound = verifier.prepare(on(graph, center, 1e-9)).bound(PLAIN if verifier is CLOSED else BUDGET)
        assert exact * (1 - 1e-7) <= bound.value <= exact * (1 + 1e-4)
        assert "local" in bound.method


@pytest.mark.parametrize("name", NAMES)
def test_a_huge_ball_has_the_global_bound(name) -> None:
    graph = graph_of(network(4, 4, (name,), width=8))
    problem = on(graph, torch.zeros(1, *graph.input_shape), 1e9)
    everywhere = Problem(graph, Question.everywhere(2))
    local, known = FAST.prepare(problem).bound(BUDGET).value, FAST.prepare(everywhere).bound(BUDGET).value
    assert local <= known * (1 + GAP)
    if math.inf in (high for component in activation(name).components for high in component_range(component)):
        assert local == pytest.approx(known, rel=2 * GAP)  # bounded functions keep the next layers in bounded intervals
    assert CLOSED.prepare(problem).bound(PLAIN).value <= CLOSED.prepare(everywhere).bound(PLAIN).value


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_ball_has_no_larger_bound(name) -> None:
    graph = graph_of(network(8, 4, (name,), width=6))
    center = torch.randn(1, *graph.input_shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    values = [FAST.prepare(on(graph, center, radius)).bound(BUDGET).value for radius in (1e-3, 0.3, 5.0)]
    assert values == pytest.approx(sorted(values), rel=1.1 * GAP)


def test_several_balls_have_the_largest_of_their_bounds() -> None:
    graph = graph_of(network(8, 4, ("tanh",), width=8))
    centers = 3 * torch.randn(6, *graph.input_shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    alone = [FAST.prepare(on(graph, centers[i : i + 1], 0.1)).bound(BUDGET).value for i in range(6)]
    together = FAST.prepare(on(graph, centers, 0.1)).bound(BUDGET)
    assert together.value == pytest.approx(max(alone), rel=GAP)
    assert together.extra["ball"] == max(range(6), key=alone.__getitem__)
    assert "6 l2 balls" in together.region
    closed = CLOSED.prepare(on(graph, centers, 0.1)).bound(PLAIN)
    assert closed.value >= together.value


@pytest.mark.parametrize("name", ["relu", "abs", "crelu", "sincos", "sin2_pair"])
def test_a_solver_agrees(name) -> None:
    pytest.importorskip("cvxpy")
    graph = graph_of(network(5, 3, (name, "tanh"), width=5))
    problem = on(graph, torch.ones(1, *graph.input_shape), 0.3, "inf")
    solved = get_verifier("lipsdp").prepare(problem).bound(Budget(seconds=60.0, options={"eps": 1e-7}))
    assert solved.proved
    assert FAST.prepare(problem).bound(BUDGET).value == pytest.approx(solved.value, rel=1e-3)


def test_the_multipliers_belong_to_the_local_system() -> None:
    graph = graph_of(network(8, 4, ("relu", "sincos"), width=8))
    problem = on(graph, torch.ones(1, *graph.input_shape), 0.2)
    bound = FAST.prepare(problem).bound(BUDGET)
    assert problem.region is not None
    systems = local_systems(graph, local_intervals(graph, problem.region)[0])
    system = systems[0 if bound.extra["joint"] else 1]
    assert prove(system, system.vectors(bound.multipliers or {}))[0] == pytest.approx(bound.value, rel=1e-9)
    assert prove_from_multipliers(system, bound.multipliers or {}).value == pytest.approx(bound.value, rel=1e-6)


def test_a_layer_of_lines_alone_is_no_trouble() -> None:
    """All ReLUs on or off: the local system has no variables left, and the bound is the Jacobian's norm."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        module[0].bias.copy_(torch.tensor([9.0, -9.0, 9.0, -9.0, 9.0, 9.0]))
    graph = graph_of(module)
    system = local_systems(graph, local_intervals(graph, Ball(torch.zeros(1, 3).double(), 0.5, 2))[0])[0]
    assert system.stages[0].increments.variables == 0
    assert system.stages[0].width == 4
    bound = FAST.prepare(on(graph, torch.zeros(1, 3), 0.5)).bound(BUDGET)
    witness = search_lower_bound(on(graph, torch.zeros(1, 3), 0.5), seconds=5).value
    assert witness <= bound.value < 1.2 * witness


def test_time_limits_and_errors() -> None:
    graph = graph_of(network(8, 4, ("relu",), width=8))
    late = FAST.prepare(on(graph, torch.ones(3, *graph.input_shape), 0.2)).bound(Budget(seconds=1e-9))
    assert late.proved
    assert late.status is Status.TIMEOUT
    assert late.value >= FAST.prepare(on(graph, torch.ones(3, *graph.input_shape), 0.2)).bound(BUDGET).value
    with pytest.raises(InvalidArgument, match="centres"):
        CLOSED.prepare(on(graph, torch.ones(1, 99), 0.2)).bound(PLAIN)
    with pytest.raises(InvalidArgument, match="finite"):
        CLOSED.prepare(on(graph, torch.full((1, *graph.input_shape), math.nan), 0.2)).bound(PLAIN)
    start = time.perf_counter()
    FAST.prepare(on(graph, torch.randn(40, *graph.input_shape), 0.2)).bound(Budget(seconds=1.0))
    assert time.perf_counter() - start < 6.0
