"""Splitting parts of balls: bounds that fall, hold at every moment, and reach the constant where they end."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge import Ball, Problem, Question
from lipbridge.branch_and_bound.local import search
from lipbridge.graph.nodes import Elementwise
from lipbridge.propagation.bounds import layer_norms
from lipbridge.propagation.jacobian.local import identity, local_constants
from lipbridge.propagation.jacobian.norms import factors_of
from lipbridge.propagation.jacobian.regions import Cut, Part, Parts, place
from lipbridge.search import search_lower_bound
from tests.support.families import network
from tests.support.jacobians import jacobians, operator_norms
from tests.support.lipsdp_reference import graph_of


def parts_of(graph, ball, p, q):
    return Parts(graph, ball, p, q, identity(graph), layer_norms(graph, ball.norm), factors_of(graph, p))


def grid(ball: Ball) -> torch.Tensor:
    line = torch.linspace(-1, 1, 201, dtype=torch.float64) * ball.radius
    return torch.cat([c + torch.cartesian_prod(line, line) for c in ball.centers])


@pytest.mark.parametrize("norm", [1, 2, "inf"])
@pytest.mark.parametrize("split", ["units", "inputs"])
@pytest.mark.parametrize("activation", ["relu", "abs", "crelu", "leaky_relu"])
def test_it_ends_at_the_constant_in_the_plane(activation, split, norm) -> None:
    torch.manual_seed(0)
    graph = lipbridge.capture(lipbridge.mlp([2, 5, 4, 2], activation))
    ball = Ball(torch.randn(2, 2, dtype=torch.float64), 0.7, "inf")
    found = search(parts_of(graph, ball, norm, norm), 2, time.perf_counter() + 30, split=split)
    reached = float(operator_norms(jacobians(graph, grid(ball)), norm, norm).max())
    assert 0 < reached <= found.value * (1 + 1e-12)
    assert found.finished
    # A cell may be too small for the grid; the witness search looks closer.
    witness = search_lower_bound(Problem(graph, Question.on(ball, norm)), seconds=2.0).value
    assert found.value <= max(reached, witness) * (1 + 1e-5)


@pytest.mark.parametrize("split", ["units", "inputs"])
def test_it_falls_and_stays_above_a_witness(split) -> None:
    graph = graph_of(network(11, 4, ("relu", "tanh"), width=8))
    ball = Ball(torch.randn(2, *graph.input_shape, dtype=torch.float64), 0.5, 2)
    witness = search_lower_bound(Problem(graph, Question.on(ball, 2)), seconds=2.0).value
    first = float(local_constants(graph, ball, 2, 2, steps=0).max())
    values = [search(parts_of(graph, ball, 2, 2), 2, time.perf_counter() + t, split=split).value for t in (0.0, 0.5, 2)]
    assert values == sorted(values, reverse=True)
    assert witness <= values[-1] < first * (1 + 1e-12)


def test_parts_cover_the_ball() -> None:
    """At points of the ball the Jacobian is below the bound of a part that holds the point."""
    graph = graph_of(network(5, 3, ("relu",), width=7))
    ball = Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 1.0, "inf")
    parts = parts_of(graph, ball, "inf", "inf")
    whole = [Part(0)]
    for _ in range(3):
        found = parts.bounded(whole, linear=True, inputs=False)
        whole = [half for b in found for half in (b.part.halves(b.split) if b.split else (b.part,))]
    found = parts.bounded(whole, linear=True, inputs=False)
    x = 2.0 * torch.rand(300, *graph.input_shape, dtype=torch.float64) - 1.0
    values, norms = graph.values(x), operator_norms(jacobians(graph, x), "inf", "inf")
    for i in range(len(x)):
        inside = [
            b for b in found if all(c.lower <= values[c.node][i].flatten()[c.unit] <= c.upper for c in b.part.cuts)
        ]
        assert inside
        assert float(norms[i]) <= max(b.value for b in inside) * (1 + 1e-12)


def test_a_part_without_inputs_is_worth_nothing() -> None:
    graph = graph_of(network(5, 3, ("relu",), width=7))
    ball = Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 0.1, "inf")
    parts = parts_of(graph, ball, 2, 2)
    (none,) = parts.bounded([Part(0, (Cut(0, 0, 5.0, 6.0),))], linear=True, inputs=True)
    assert none.value == 0.0
    assert none.split is None


def test_an_interval_is_cut_at_a_kink() -> None:
    graph = lipbridge.capture(nn.Sequential(nn.Linear(2, 3), nn.Hardtanh(), nn.Linear(3, 2)))
    node = graph.nodes[2]
    assert isinstance(node, Elementwise)
    assert place(node, -3.0, 0.5) == -1.0
    assert place(node, 0.0, 4.0) == 1.0
    assert place(node, 0.0, 0.5) == 0.25
    assert place(node, 0.5, 0.5) is None
