"""The lipsdp verifier: equal to a naive LipSDP in cvxpy, never below a witness, honest about its limits."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.activations.registry import activation_names
from lipbridge.errors import InvalidArgument, LipbridgeError, UnsupportedProblem
from lipbridge.lipsdp.blocks import blocks_of, predicted_size
from lipbridge.lipsdp.elimination import closed_form
from lipbridge.lipsdp.multipliers import closed_form_bound, prove_from_multipliers
from lipbridge.lipsdp.system import lipsdp_of
from lipbridge.verifiers import Budget, Verifier
from lipbridge.vocabulary import Side, Status
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import SLOPES, chain, graph_of, lmi, sampled
from tests.support.refusals import refused

cp: Any = pytest.importorskip("cvxpy")
lipsdp: Any = pytest.importorskip("lipbridge_adapters.sdp.lipsdp")

torch.set_num_threads(1)
VERIFIER = lipsdp.LipSDPVerifier()
MIXED = [["relu", "abs", "gelu"], ["sincos", "relu"], ["crelu", "sin2_pair", "abs"], ["tanh", "sincos", "identity_abs"]]


def bound(graph: lipbridge.Graph, seconds: float = 60.0, **options: object) -> lipbridge.Bound:
    return VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(
        Budget(seconds=seconds, options=options)
    )


def reference(weights: list[np.ndarray], names: list[str]) -> float:
    """The least rho of the naive matrix inequality, by cvxpy with another solver."""
    n, gram, units = lmi(weights, names)
    rho, T = cp.Variable(nonneg=True), cp.Variable(len(units), nonneg=True)
    inputs = np.diag([1.0] * n + [0.0] * (len(gram) - n))
    forms = np.stack([unit.form.astype(float).ravel(order="F") for unit in units], axis=1)
    total = rho * inputs - gram.astype(float) - cp.reshape(forms @ T, gram.shape, order="F")
    problem = cp.Problem(cp.Minimize(rho), [total >> 0])
    problem.solve(solver="CLARABEL")
    return float(problem.value)


@pytest.mark.parametrize("names", [*([name, name] for name in [*SLOPES, "sincos"]), *MIXED], ids="-".join)
def test_it_agrees_with_the_naive_program(names):
    graph, weights = chain(names, [*[3, 6, 5, 4][: len(names) + 1], 2], seed=7)
    value = bound(graph).value / 2.0 ** lipsdp_of(graph).exponent
    assert value == pytest.approx(reference(weights, names) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("name", activation_names())
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_it_lies_between_witness_and_trivial_bound(name, flavour):
    graph = graph_of(network(13, 3, (name,), flavour, width=7))
    found = bound(graph, eps=1e-4)
    assert (found.side, found.proved, found.status) == (Side.UPPER, True, Status.OK)
    assert sampled(graph) * (1 - 1e-9) <= found.value <= closed_form_bound(graph).value * (1 + 1e-6)
    assert found.value <= lipbridge.trivial_bound(graph).value * (1 + 1e-6)


def test_the_multipliers_prove_the_bound_again():
    graph = graph_of(network(2, 4, ("relu", "crelu"), width=8))
    found = bound(graph)
    assert prove_from_multipliers(graph, found.multipliers or {}).value == pytest.approx(found.value, rel=1e-6)


def test_a_pulse_has_constant_one_and_is_not_bounded_below_it():
    # f = relu(x + 1) - relu(x - 1): the published "network" variant of LipSDP returns 5e-6 here.
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.ones(2, 1))
        net[0].bias.copy_(torch.tensor([1.0, -1.0]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
    assert bound(graph_of(net)).value >= 1.0


def test_crelu_profits_from_its_two_outputs_being_tied():
    graph, _ = chain(["crelu", "crelu"], [6, 12, 12, 3], seed=0)
    assert bound(graph).value < 0.8 * lipbridge.trivial_bound(graph).value
    assert bound(graph).value < 0.9 * closed_form_bound(graph).value


def test_the_closed_form_is_the_vector_of_ones_of_the_blocks():
    for names in (["relu", "gelu"], ["abs", "crelu"], ["sincos", "sincos"], ["identity_abs", "relu"]):
        graph, _ = chain(names, [9, 6, 5, 2], seed=3)
        system = lipsdp_of(graph)
        blocks = blocks_of(system, closed_form(system))
        entries, cells = predicted_size(system)
        assert sum(len(block.values) for block in blocks.blocks) == entries
        assert sum(block.size**2 for block in blocks.blocks) == cells
        smallest = []
        for block in blocks.blocks:
            lower = np.zeros((block.size, block.size))
            np.add.at(lower, (block.rows, block.columns), block.values)
            full = lower + np.tril(lower, -1).T + block.constant
            smallest.append(float(np.linalg.eigvalsh(full)[0]))
        assert all(abs(value) < 1e-6 for value in smallest[:1])  # rho is the least for these multipliers
        assert all(value > -1e-9 for value in smallest)


def test_single_layers_and_constant_networks_need_no_solver():
    layer = nn.Sequential(nn.Linear(5, 4)).double().requires_grad_(False)
    exact = float(torch.linalg.matrix_norm(layer[0].weight, 2))
    assert bound(graph_of(layer)).value == pytest.approx(exact, rel=1e-12)
    assert bound(graph_of(network(5, 3, ("gelu",), "zero_layer"))).value == 0.0


# --- limits, options, errors -----------------------------------------------------------------------------------------


def test_the_time_limit_holds_and_leaves_a_proved_bound():
    graph, _ = chain(["relu"] * 3, [10, 150, 150, 150, 5], seed=0)
    start = time.perf_counter()
    found = bound(graph, seconds=1.0, eps=1e-9)
    assert time.perf_counter() - start < 8.0  # one second, and the slack of a busy machine
    assert (found.status, found.proved) == (Status.TIMEOUT, True)
    assert found.value <= closed_form_bound(graph).value * (1 + 1e-6)
    assert "limit" in found.detail


def test_what_cannot_be_built_in_time_is_not_begun():
    graph, _ = chain(["gelu"] * 2, [10, 250, 250, 5], seed=0)
    found = bound(graph, seconds=1.0)
    assert (found.status, found.proved) == (Status.TIMEOUT, True)
    assert found.value == closed_form_bound(graph).value
    assert "closed-form" in found.detail


def test_memory_is_predicted_and_refused():
    graph, _ = chain(["relu"] * 2, [10, 50, 50, 5], seed=0)
    found = VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2))).bound(Budget(memory=10**8))
    assert found.status is Status.MEMORY
    assert not found.proved
    assert found.value != found.value
    assert "GiB" in found.detail


def test_solvers_are_checked_by_name():
    graph = graph_of(network(1, 3, ("relu",)))
    with pytest.raises(LipbridgeError, match=r"NOSUCH.*Installed: .*SCS"):
        bound(graph, solver="nosuch")
    with pytest.raises(LipbridgeError, match=r"no semidefinite.*SCS"):
        bound(graph, solver="SCIPY")
    with pytest.raises(InvalidArgument, match="eps"):
        bound(graph, eps=-1)
    with pytest.raises(InvalidArgument, match="max_iters"):
        bound(graph, max_iters=0)
    with pytest.raises(InvalidArgument, match="solver"):
        bound(graph, solver=3)


@pytest.mark.skipif("CLARABEL" not in cp.installed_solvers(), reason="CLARABEL is not installed")
def test_another_solver_gives_the_same_bound():
    graph = graph_of(network(4, 3, ("relu", "gelu"), width=8))
    assert bound(graph, solver="clarabel").value == pytest.approx(bound(graph).value, rel=1e-3)


def test_a_solver_that_stops_early_or_fails_leaves_a_proved_bound(monkeypatch):
    graph, _ = chain(["relu", "relu"], [4, 8, 8, 3], seed=1)
    closed = closed_form_bound(graph).value
    early = bound(graph, max_iters=2)
    assert early.proved
    assert sampled(graph) <= early.value <= closed * (1 + 1e-6)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the solver broke")

    monkeypatch.setattr("scs.SCS.solve", broken, raising=False)
    monkeypatch.setattr("cvxpy.reductions.solvers.conic_solvers.scs_conif.SCS.solve_via_data", broken)
    failed = bound(graph)
    assert (failed.status, failed.proved, failed.value) == (Status.FAILED, True, closed)
    assert "broke" in failed.detail


def test_it_is_a_verifier_and_says_what_it_does_not_take():
    assert isinstance(VERIFIER, Verifier)
    graph = graph_of(network(1, 3, ("relu",)))
    ball = lipbridge.Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 1.0, 2)
    on_ball = VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.on(ball, 2))).bound(Budget())
    assert "ball" in on_ball.region
    assert "l2" in str(refused(VERIFIER, lipbridge.Problem(graph, lipbridge.Question.everywhere("inf"))))
    with pytest.raises(UnsupportedProblem, match="l2"):
        VERIFIER.prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere("inf"))).bound(Budget())
