"""Batched LipSDP bounds: the gradient against autograd, the sandwich, the optimum, no host in the loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lipbridge
from lipbridge.activations.registry import activation_names
from lipbridge.errors import InvalidArgument, UnsupportedProblem
from lipbridge.lipsdp.elimination import contract, diagonals, eliminate
from lipbridge.lipsdp.multipliers import closed_form_bound, prove_from_multipliers
from lipbridge.lipsdp.solve.batch import lipsdp_bounds
from lipbridge.lipsdp.solve.descent import POWER, descend, evaluate, stack_of, start
from lipbridge.lipsdp.system import lipsdp_of
from lipbridge.verifiers import Budget, get_verifier
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import chain, graph_of, sampled

NAMES = activation_names()
MIXED = [["abs", "relu"], ["relu", "abs", "gelu"], ["sincos", "crelu"], ["tanh", "sincos", "identity_abs"]]


def smoothed_eigenvalue(F):
    values = torch.linalg.eigvalsh(F)
    r = 2**POWER + 1
    return values[-1] * ((values / values[-1]) ** r).sum() ** (1 / r)


def smoothed_log_rho(system, theta):
    """The objective, written out with dense inverses."""
    H = torch.eye(system.stages[-1].weight.shape[0], dtype=torch.float64)
    for stage, log_T in zip(reversed(system.stages), reversed(theta), strict=True):
        T, E, u = log_T.exp(), stage.increments.outputs, stage.width
        G = contract(stage, stage.weight.T @ H @ stage.weight, E, E)
        if stage.increments.cuts:
            scale = diagonals(stage, T)[1].rsqrt()
            H = torch.diag((T * smoothed_eigenvalue(G[u:, u:] * scale[:, None] * scale)).sum(0))
        else:
            on_z, on_q = diagonals(stage, T)
            H = torch.diag(on_z) + G[:u, :u] + G[:u, u:] @ torch.linalg.inv(torch.diag(on_q) - G[u:, u:]) @ G[u:, :u]
    W = system.entry
    root = torch.linalg.qr(W.T)[1] if W.shape[1] > W.shape[0] else W.T
    return smoothed_eigenvalue(root @ H @ root.T).log()


@pytest.mark.parametrize("names", [*([name, name] for name in NAMES), *MIXED], ids="-".join)
@pytest.mark.parametrize("inputs", [4, 9])
def test_the_gradient_is_that_of_autograd(names, inputs):
    graph, _ = chain(names, [*[inputs, 6, 5, 4][: len(names) + 1], 3], seed=1)
    system = lipsdp_of(graph)
    stack = stack_of([system])
    theta = [t + 0.01 * torch.rand(t.shape, dtype=t.dtype) for t in start(stack, 0.1)]
    _, gradients, _, feasible = evaluate(stack, [t.exp() for t in theta])
    assert bool(feasible)
    leaves = [t[0].clone().requires_grad_() for t in theta]
    expected = torch.autograd.grad(smoothed_log_rho(system, leaves), leaves)
    for found, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found[0], reference, rtol=1e-9, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**5),
    depth=st.integers(1, 5),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    flavours=st.lists(st.sampled_from(FLAVOURS), min_size=1, max_size=3),
)
def test_each_lies_between_witness_and_closed_form(seed, depth, names, flavours):
    graphs = [graph_of(network(seed, depth, tuple(names), flavour)) for flavour in flavours]  # equal widths by the seed
    for graph, bound in zip(graphs, lipsdp_bounds(graphs, 20), strict=True):
        assert bound.proved
        assert sampled(graph) * (1 - 1e-9) <= bound.value <= closed_form_bound(graph).value


@pytest.mark.parametrize("names", [["relu", "relu"], ["abs", "sincos", "gelu"], ["crelu", "abs"]], ids="-".join)
def test_they_agree_with_the_optimum(names):
    graphs = [chain(names, [6, 12, 10, 8, 4][: len(names) + 2], seed=seed)[0] for seed in range(4)]
    for graph, found in zip(graphs, lipsdp_bounds(graphs, 300), strict=True):
        single = (
            get_verifier("lipsdp-fast")
            .prepare(lipbridge.Problem(graph, lipbridge.Question.everywhere(2)))
            .bound(Budget())
        )
        least = single.value / (1.0 + single.extra["gap"])
        assert least * (1 - 1e-9) <= found.value <= single.value * 1.02
        assert found.value < 0.999 * closed_form_bound(graph).value
        assert prove_from_multipliers(graph, found.multipliers).value == pytest.approx(found.value, rel=1e-6)


def test_a_network_does_not_see_its_neighbours():
    graphs = [graph_of(network(3, 4, ("relu",), flavour, width=9)) for flavour in ("random", "ill_conditioned", "huge")]
    for graph, together in zip(graphs, lipsdp_bounds(graphs, 30), strict=True):
        assert lipsdp_bounds([graph], 30)[0].value == pytest.approx(together.value, rel=1e-6)


def test_more_steps_are_never_worse_than_the_start():
    graph, _ = chain(["relu"] * 4, [10, 30, 30, 30, 30, 5], seed=0)
    system = lipsdp_of(graph)
    stack = stack_of([system])
    theta = start(stack)
    first = float(eliminate(system, [t[0].exp() for t in theta]))
    multipliers, log_rho, found = descend(stack, theta, 60)
    assert bool(found)
    last = float(eliminate(system, [T[0] for T in multipliers]))
    assert last < 0.9 * first
    assert float(log_rho.exp()) <= last * (1 + 1e-9)


def test_the_descent_never_waits_for_the_device():
    graphs = [graph_of(network(seed, 4, ("relu", "abs", "crelu"), width=1)) for seed in range(2)]
    stack = stack_of([lipsdp_of(graph) for graph in graphs])
    meta = replace(
        stack,
        entry=stack.entry.to("meta"),
        weights=[W.to("meta") for W in stack.weights],
        masks=[m.to("meta") for m in stack.masks],
    )
    multipliers, log_rho, found = descend(meta, start(meta), 3)
    assert log_rho.is_meta
    assert found.is_meta
    assert [T.shape for T in multipliers] == [t.shape for t in start(stack)]


def test_errors():
    relu, wide = graph_of(network(1, 3, ("relu",))), graph_of(network(1, 4, ("relu",)))
    assert lipsdp_bounds([]) == []
    with pytest.raises(InvalidArgument, match="equal widths"):
        lipsdp_bounds([relu, wide])
    with pytest.raises(InvalidArgument, match="steps"):
        lipsdp_bounds([relu], 0)
    with pytest.raises(UnsupportedProblem):
        lipsdp_bounds([lipbridge.capture(torch.nn.Sequential(torch.nn.Linear(4, 4), lipbridge.MaxMin()))])
