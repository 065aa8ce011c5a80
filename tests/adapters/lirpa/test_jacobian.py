"""Lipschitz constants by auto_LiRPA's Jacobian: never below a Jacobian that was seen; other problems are refused."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lipbridge
from lipbridge import Ball, Bound, Budget, Problem, Question, Side, Status, activation_names, get_verifier
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Input
from lipbridge.norms.matrix import CHEAP_PAIRS, operator_norm
from lipbridge.problem.verifier import Task
from lipbridge.vocabulary import Norm
from lipbridge_adapters.lirpa import shim
from lipbridge_adapters.lirpa.auto_lirpa import AutoLirpaVerifier
from lipbridge_adapters.lirpa.jacobian import norm_of
from lipbridge_adapters.lirpa.network import Network
from tests.adapters.lirpa.jacobian_networks import KINDS, TAKEN, network, steepest
from tests.support.chains import normal
from tests.support.refusals import refused

if find_spec("auto_LiRPA") is None:
    pytest.skip("auto_LiRPA is missing: pip install --no-deps auto-LiRPA==0.3", allow_module_level=True)

VERIFIER = AutoLirpaVerifier()
NORMS: tuple[Norm, ...] = (2, "inf")
newer = pytest.mark.skipif(not shim.has_jacobian(), reason=f"auto_LiRPA is older than 0.7: {shim.INSTALL_NEWEST}")


def lipschitz(graph: Graph, center: Tensor, radius: float, norm: Norm, p: Norm, q: Norm) -> Problem:
    return Problem(graph, Question.on(Ball(center, radius, norm), p, q))


def bounded(problem: Problem, **options: Any) -> Bound:
    task = VERIFIER.prepare(problem)
    assert isinstance(task, Task), task
    return task.bound(Budget(options=options))


# --- what 0.3 is told ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shim.has_jacobian(), reason="this release has a Jacobian")
def test_an_old_release_says_what_is_missing_and_how_to_get_it() -> None:
    graph = network("chain", "relu", 0)
    reason = refused(VERIFIER, lipschitz(graph, torch.zeros(1, 4), 0.1, "inf", "inf", "inf")) or ""
    assert "0.7" in reason
    assert "git+https://github.com/Verified-Intelligence/auto_LiRPA" in reason


def test_other_questions_are_refused_with_the_reason() -> None:
    graph, x = network("chain", "relu", 0), torch.zeros(1, 4)
    assert "whole space" in (refused(VERIFIER, Problem(graph, Question.everywhere(2))) or "")
    assert "l1 balls" in (refused(VERIFIER, lipschitz(graph, x, 0.1, 1, 1, 1)) or "")


# --- norms of intervals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "q"), CHEAP_PAIRS)
def test_norms_of_intervals_hold_for_every_matrix_between(p: Norm, q: Norm) -> None:
    for seed in range(5):
        low, high = normal(seed, 2, 3, 4).sort(0).values
        share = torch.rand(500, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        share[:250] = share[:250].round()
        found = operator_norm(low + share * (high - low), p, q).max()
        assert float(found) <= norm_of(low, high, p, q)
        assert norm_of(low, low, p, q) == pytest.approx(float(operator_norm(low, p, q)), rel=1e-12)


# --- the network that is differentiated ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_differentiated_is_the_graph(kind: str, name: str) -> None:
    graph = network(kind, name, 1)
    lowered = Network(graph, "CROWN", derivative=True)
    x = 2 * normal(0, 20, *graph.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(lowered(x.flatten(1)), graph(x), rtol=0, atol=1e-9)
    assert not any(isinstance(module, nn.Conv2d) for module in lowered.modules())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: graph(z[None])[0]))(x).flatten(2)
    assert bool((jacobian.abs() <= lowered.steepest() * (1 + 1e-12)).all())


# --- soundness -------------------------------------------------------------------------------------------------------

CASES = [
    (kind, name, index)
    for index, (kind, name) in enumerate(product(KINDS, TAKEN))
    if name in ("relu", "abs", "crelu", "tanh", "silu") or kind in ("chain", "convolutions")
]


@newer
@pytest.mark.parametrize(("kind", "name", "index"), CASES)
def test_no_jacobian_in_a_ball_is_larger(kind: str, name: str, index: int) -> None:
    norm, method = NORMS[index % 2], ("CROWN", "CROWN", "alpha-CROWN")[index % 3]
    for seed, radius in ((index, (1e-9, 1e-3)[index % 2]), (index + 1, (0.1, 0.5)[index % 2])):
        p, q = CHEAP_PAIRS[(index + seed) % len(CHEAP_PAIRS)]
        graph = network(kind, name, seed)
        center = normal(seed, 1, *graph.input_shape)
        bound = bounded(lipschitz(graph, center, radius, norm, p, q), method=method, iterations=3)
        assert bound.status is Status.OK, bound.detail
        assert (bound.side, bound.proved) == (Side.UPPER, False)
        assert bound.value >= steepest(graph, center, radius, norm, p, q, 1000, seed)


@newer
@pytest.mark.parametrize(("p", "q"), CHEAP_PAIRS)
def test_tiny_balls_give_the_norm_of_the_jacobian(p: Norm, q: Norm) -> None:
    graph = network("chain", "abs", 3)
    center = normal(0, 1, 4)
    exact = steepest(graph, center, 1e-9, "inf", p, q, 1, 0)
    for norm in NORMS:
        assert bounded(lipschitz(graph, center, 1e-9, norm, p, q)).value == pytest.approx(exact, rel=1e-5)


@newer
def test_each_ball_has_a_value_of_its_own() -> None:
    """Release 0.7.1 gives all inputs of one batch one value."""
    graph = network("chain", "relu", 2)
    centers = normal(5, 3, 4)
    together = bounded(lipschitz(graph, centers, 0.05, "inf", "inf", "inf"))
    values = [bounded(lipschitz(graph, center[None], 0.05, "inf", "inf", "inf")).value for center in centers]
    assert together.extra["values"] == {"CROWN": pytest.approx(values, rel=1e-12)}
    assert len(set(values)) == 3
    assert together.value == max(values)
    assert together.extra["ball"] == values.index(max(values))
    assert together.method == "auto_LiRPA Jacobian CROWN"


@newer
def test_it_is_about_as_tight_as_ours_in_linf() -> None:
    graph = lipbridge.capture(lipbridge.mlp([8, 16, 16, 3], "relu").double())
    problem = lipschitz(graph, normal(1, 1, 8), 0.05, "inf", "inf", "inf")
    task = get_verifier("jacobian").prepare(problem)
    assert isinstance(task, Task)
    assert bounded(problem).value == pytest.approx(task.bound(Budget()).value, rel=0.2)


@newer
@pytest.mark.parametrize("name", sorted(set(activation_names()) - set(TAKEN)))
def test_what_it_does_not_differentiate_is_refused_by_name(name: str) -> None:
    graph = network("chain", name, 0)
    reason = refused(VERIFIER, lipschitz(graph, torch.zeros(1, 4), 0.1, "inf", "inf", "inf")) or ""
    assert any(word in reason for word in (name, "sin", "cos")), reason


@newer
def test_folded_normalisation_and_averages_are_taken() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(12, 3)).double().eval()
    graph = lipbridge.capture(module, (1, 4, 4))
    center = normal(1, 1, 1, 4, 4)
    bound = bounded(lipschitz(graph, center, 0.1, "inf", "inf", "inf"))
    assert bound.value >= steepest(graph, center, 0.1, "inf", "inf", "inf", 1000, 0)


@newer
def test_methods_norms_and_limits() -> None:
    graph, x = network("chain", "relu", 0), torch.zeros(9, 4)
    problem = lipschitz(graph, x, 0.1, "inf", "inf", "inf")
    for method in ("IBP", "CROWN-IBP"):
        bound = bounded(problem, method=method)
        assert (bound.status, math.isnan(bound.value)) == (Status.UNSUPPORTED, True)
        assert f"not by {method}" in bound.detail
    assert "NP-hard" in (refused(VERIFIER, lipschitz(graph, x, 0.1, "inf", "inf", 1)) or "")
    task = VERIFIER.prepare(problem)
    assert isinstance(task, Task)
    late = task.bound(Budget(seconds=1e-9))
    assert (late.status, late.extra["centers_done"]) == (Status.TIMEOUT, 1)
    assert task.bound(Budget(memory=1000)).status is Status.MEMORY
    rows = Graph((Input("x", (), (2, 3)), Dense("rows", (0,), (2, 1), torch.ones(1, 3).double())))
    assert "output" in (refused(VERIFIER, lipschitz(rows, torch.zeros(1, 2, 3), 0.1, 2, 2, 2)) or "")


@newer
def test_its_task_certifies_too() -> None:
    graph = network("chain", "abs", 1)
    x = normal(0, 5, 4)
    task = VERIFIER.prepare(lipschitz(graph, x[:1], 0.1, "inf", "inf", "inf"))
    assert isinstance(task, Task)
    assert task.certify(x, graph(x).argmax(-1), 1e-7, Budget()).all()


@newer
def test_optimised_bounds_are_no_looser() -> None:
    graph = network("chain", "relu", 4)
    problem = lipschitz(graph, normal(3, 1, 4), 0.3, "inf", "inf", "inf")
    first, better = (bounded(problem, method=method, iterations=10).value for method in ("CROWN", "alpha-CROWN"))
    assert better <= first * (1 + 1e-6)
