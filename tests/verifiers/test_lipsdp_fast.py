"""lipsdp-fast: the SDP optimum without a solver, never below a witness, never above the closed form."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation_names
from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.lipsdp.elimination import eliminate
from lipbridge.lipsdp.multipliers import closed_form_bound, prove_from_multipliers
from lipbridge.lipsdp.solve.assembly import program_of
from lipbridge.lipsdp.solve.barrier import LIGHT
from lipbridge.lipsdp.solve.newton import interior_point
from lipbridge.lipsdp.system import lipsdp_of
from lipbridge.verifiers import Budget, Verifier, get_verifier
from lipbridge.verifiers.eclipse_fast import EclipseFastVerifier
from lipbridge.verifiers.lipsdp_fast import LipSDPFastVerifier
from lipbridge.vocabulary import Side, Status
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import chain, graph_of, sampled

torch.set_num_threads(1)
VERIFIER = LipSDPFastVerifier()
NAMES = activation_names()
MIXED = [["relu", "abs", "gelu"], ["sincos", "relu"], ["crelu", "sin2_pair", "abs"], ["tanh", "sincos", "identity_abs"]]


def bound(graph: lipbridge.Graph, seconds: float = 60.0, **options: object) -> lipbridge.Bound:
    return VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(
        Budget(seconds=seconds, options=options)
    )


# --- the barrier against autograd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [*([name, name] for name in NAMES), *MIXED], ids="-".join)
def test_gradient_and_hessian_are_those_of_autograd(names):
    graph, _ = chain(names, [*[3, 5, 4, 3][: len(names) + 1], 2], seed=1)
    system = lipsdp_of(graph)
    program = program_of(system)
    vectors, rho = interior_point(system)
    x = program.point(rho, vectors)
    x = x * (1.0 + 0.01 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype))

    def logdet(y):
        total = 0.0
        for segment in program.segments:
            M = segment.matrix(y)
            rest = torch.linalg.slogdet(M[segment.head :, segment.head :])[1]
            total = total + torch.linalg.slogdet(M)[1] - (1.0 - LIGHT) * rest
        return total

    factors = program.factors(x)
    assert factors.logdet == pytest.approx(float(logdet(x)), rel=1e-10)
    found = program.derivatives(factors, x.numel())
    b, H = found.gradient, found.hessian
    torch.testing.assert_close(b, torch.autograd.functional.jacobian(logdet, x), rtol=1e-8, atol=1e-8)
    expected = -torch.autograd.functional.hessian(logdet, x)
    torch.testing.assert_close(H, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("names", [["relu", "relu"], ["abs", "abs"], ["sincos", "gelu"]], ids="-".join)
def test_the_barrier_is_finite_exactly_where_the_elimination_succeeds(names):
    graph, _ = chain(names, [3, 5, 4, 2], seed=2)
    system = lipsdp_of(graph)
    program = program_of(system)
    vectors, _ = interior_point(system)
    rho = float(eliminate(system, vectors))
    assert program.factors(program.point(rho * (1 + 1e-9), vectors)) is not None
    assert program.factors(program.point(rho * (1 - 1e-9), vectors)) is None


# --- the optimum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [*([name, name] for name in NAMES), *MIXED], ids="-".join)
def test_it_agrees_with_the_semidefinite_program(names):
    pytest.importorskip("cvxpy")
    graph, _ = chain(names, [*[4, 8, 7, 5][: len(names) + 1], 3], seed=7)
    reference = (
        get_verifier("lipsdp")
        .prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))
        .bound(Budget(options={"eps": 1e-6}))
    )
    found = bound(graph, gap=1e-4)
    assert found.status is Status.OK
    assert found.value == pytest.approx(reference.value, rel=1e-3)
    assert found.extra["gap"] < 2e-4
    assert found.value / (1 + found.extra["gap"]) <= reference.value * (1 + 1e-9)


def test_a_chain_of_slopes_up_to_one_is_the_best_rescaled_trivial_bound():
    graph, _ = chain(["abs", "sincos", "sin"], [6, 12, 10, 8, 4], seed=3)
    found = bound(graph, gap=1e-5)
    system = lipsdp_of(graph)
    T = system.vectors(found.multipliers)
    weights = [system.entry, *(stage.weight for stage in system.stages)]
    product, before = 2.0**system.exponent, torch.ones(system.entry.shape[1], dtype=torch.float64)
    for index, W in enumerate(weights):
        after = T[index].flatten().sqrt() if index < len(T) else torch.ones(W.shape[0], dtype=torch.float64)
        product *= float(torch.linalg.matrix_norm(after[:, None] * W / before, 2))
        before = after.repeat(W.shape[1] if index == len(T) else weights[index + 1].shape[1] // len(after))
    assert found.value == pytest.approx(product, rel=1e-4)
    assert found.value < 0.98 * lipbridge.trivial_bound(graph).value


# --- the sandwich, invariances ---------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    depth=st.integers(1, 6),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    flavour=st.sampled_from(FLAVOURS),
)
def test_it_lies_between_witness_and_closed_form(seed, depth, names, flavour):
    graph = graph_of(network(seed, depth, tuple(names), flavour))
    found = bound(graph)
    assert (found.side, found.proved, found.status) == (Side.UPPER, True, Status.OK)
    assert sampled(graph) * (1 - 1e-9) <= found.value <= closed_form_bound(graph).value


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), depth=st.integers(2, 5), name=st.sampled_from(NAMES), spread=st.sampled_from([3, 30])
)
def test_weights_of_wildly_different_size_are_no_trouble(seed, depth, name, spread):
    net = network(seed, depth, (name,))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                exponents = (spread * torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)).round()
                layer.weight *= torch.exp2(exponents.clamp(-150, 150))
    graph = graph_of(net)
    try:
        above = closed_form_bound(graph).value
    except NumericalFailure:  # weights over 300 powers of two leave rounding no room: a failure that says so
        assert spread == 30
        return
    assert sampled(graph) * (1 - 1e-9) <= bound(graph).value <= above


@pytest.mark.parametrize("name", ["relu", "gelu", "abs", "sincos", "crelu"])
def test_neurons_permuted_and_inputs_turned_change_nothing(name):
    net = network(8, 3, (name,), width=9)
    before = bound(graph_of(net), gap=1e-6).value
    generator = torch.Generator().manual_seed(1)
    u, K = net[0].out_features, lipbridge.activation(name).width
    order = torch.randperm(u, generator=generator)
    n = net[0].in_features
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[order] @ Q)
        net[2].weight.copy_(net[2].weight.reshape(-1, K, u)[:, :, order].flatten(1))
    assert bound(graph_of(net), gap=1e-6).value == pytest.approx(before, rel=3e-6)


def test_a_wider_slope_interval_gives_a_larger_bound():
    net = network(9, 4, ("relu",), width=9)
    values = []
    for slope in (0.9, 0.5, 0.1, 0.0, -0.3, -0.9):
        leaky = nn.Sequential(*(nn.LeakyReLU(slope) if isinstance(layer, nn.ReLU) else layer for layer in net))
        values.append(bound(lipbridge.capture(leaky), gap=1e-6).value)
    assert all(smaller <= larger * (1 + 3e-6) for smaller, larger in pairwise(values))


def test_powers_of_two_scale_the_bound_exactly():
    net = network(21, 4, ("silu", "abs", "relu"), width=8)
    before = bound(graph_of(net)).value
    with torch.no_grad():
        net[0].weight *= 2.0**200
        net[2].weight *= 2.0**-70
    assert bound(graph_of(net)).value == before * 2.0**130


def test_the_multipliers_prove_the_bound_again():
    graph = graph_of(network(2, 4, ("relu", "crelu"), width=8))
    found = bound(graph)
    assert prove_from_multipliers(graph, found.multipliers).value == pytest.approx(found.value, rel=1e-6)


# --- limits, options, errors -----------------------------------------------------------------------------------------


def test_the_time_limit_holds_and_leaves_a_proved_bound():
    graph, _ = chain(["relu"] * 4, [10, 150, 150, 150, 150, 5], seed=0)
    start = time.perf_counter()
    found = bound(graph, seconds=0.4, gap=1e-9)
    assert time.perf_counter() - start < 5.0  # the slack of a busy machine
    assert found.proved
    assert found.value <= closed_form_bound(graph).value
    assert found.status is not Status.TIMEOUT or "limit" in found.detail


@pytest.mark.parametrize("names", [["relu"] * 3, ["abs", "sincos", "gelu"]], ids="-".join)
def test_descent_takes_the_place_of_newton_where_that_does_not_fit(names, monkeypatch):
    graph, _ = chain(names, [6, 12, 12, 12, 4], seed=0)
    best = bound(graph)
    monkeypatch.setattr("lipbridge.verifiers.lipsdp_fast.predicted_seconds", lambda _: math.inf)
    found = bound(graph)
    assert best.value / (1 + 5e-4) <= found.value <= best.value * 1.02
    assert found.value < closed_form_bound(graph).value
    assert found.proved
    assert "gap" not in found.extra


def test_memory_is_predicted_and_refused():
    graph, _ = chain(["relu"], [10, 50, 5], seed=0)
    found = VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(Budget(memory=10**8))
    assert (found.status, found.proved) == (Status.MEMORY, False)
    assert math.isnan(found.value)


def test_single_layers_and_constant_networks_need_no_steps():
    layer = nn.Sequential(nn.Linear(5, 4)).double().requires_grad_(False)
    exact = float(torch.linalg.matrix_norm(layer[0].weight, 2))
    assert bound(graph_of(layer)).value == pytest.approx(exact, rel=1e-12)
    assert bound(graph_of(network(5, 3, ("gelu",), "zero_layer"))).value == 0.0


def test_errors():
    graph = graph_of(network(1, 3, ("relu",)))
    for gap in (0, 1, -1.0, "small"):
        with pytest.raises(InvalidArgument, match="gap"):
            bound(graph, gap=gap)
    for verifier in (VERIFIER, EclipseFastVerifier()):
        assert isinstance(verifier, Verifier)
        with pytest.raises(UnsupportedProblem, match="l2"):
            verifier.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere("inf"))).bound(Budget())


def test_eclipse_fast_is_the_closed_form():
    graph = graph_of(network(3, 4, ("relu", "gelu"), width=8))
    found = (
        get_verifier("eclipse-fast").prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(Budget())
    )
    assert found.value == closed_form_bound(graph).value
    assert (
        get_verifier("lipsdp-fast")
        .prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))
        .bound(Budget())
        .value
        < found.value
    )
