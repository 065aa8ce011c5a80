"""Local constants from bounds of the Clarke Jacobian: above every Jacobian of the region, and exact as it shrinks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipbridge
from lipbridge import Ball
from lipbridge.activations.registry import activation_names
from lipbridge.graph.graph import Graph, with_axes
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.propagation.bounds import forward_bounds
from lipbridge.propagation.jacobian.cotangents import Cotangents
from lipbridge.propagation.jacobian.derivatives import derivatives
from lipbridge.propagation.jacobian.local import (
    everywhere,
    identity,
    local_constants,
    norm_of_jacobians,
    row_constants,
)
from lipbridge.propagation.jacobian.norms import Norms, magnitudes_up
from lipbridge.propagation.rules import Context
from lipbridge.search.starts import in_balls
from lipbridge.vocabulary import NORMS, exponent
from tests.support.dags import dag
from tests.support.enclosed import balls_of
from tests.support.families import FLAVOURS, network
from tests.support.jacobians import jacobians, operator_norms
from tests.support.lipsdp_reference import graph_of
from tests.support.problem_families import FAMILIES
from tests.support.problem_families import graph_of as family_of

families = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(1, 4),
    activations=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(FLAVOURS),
)


def family(name: str) -> Graph:
    return with_axes(family_of(name))


RADII = (1e-9, 1e-3, 0.1, 1.0, 10.0)


def require_above(graph: Graph, ball: Ball, *, linear: bool) -> None:
    """Every Jacobian at points of the balls, and every difference quotient of two, is below the bounds."""
    x, domain = in_balls(ball, 60, torch.Generator().manual_seed(1))
    index = [int((ball.centers == center).flatten(1).all(1).nonzero()[0, 0]) for center in domain.centers]
    J, slack = jacobians(graph, x), 1.0 - 1e-11
    order = [int(i) for i in torch.tensor(index).argsort(stable=True)]
    for p, q in CHEAP_PAIRS:
        bound = local_constants(graph, ball, p, q, linear=linear)
        assert bound.shape == (len(ball.centers),)
        assert bool((operator_norms(J, p, q).nan_to_num(0.0) * slack <= bound[index]).all()), (p, q)
        a, b = order[:-1], order[1:]
        same = [i for i in range(len(a)) if index[a[i]] == index[b[i]]]
        a, b = [a[i] for i in same], [b[i] for i in same]
        change = torch.linalg.vector_norm((graph(x[a]) - graph(x[b])).flatten(1), exponent(q), dim=1)
        step = torch.linalg.vector_norm((x[a] - x[b]).flatten(1), exponent(p), dim=1)
        rounding = 1e-12 * torch.linalg.vector_norm(graph(x[a]).flatten(1), exponent(q), dim=1)
        held = bound[[index[i] for i in a]]
        assert bool((change.nan_to_num(0.0) <= held * step * (1.0 + 1e-9) + rounding.nan_to_num(1.0)).all())


@settings(max_examples=25)
@given(families, st.sampled_from(RADII), st.sampled_from(NORMS), st.booleans())
def test_no_jacobian_of_a_chain_is_above(module, radius, norm, linear) -> None:
    graph = graph_of(module)
    require_above(graph, balls_of(graph, radius, norm), linear=linear)


@settings(max_examples=25)
@given(st.integers(0, 10**9), st.sampled_from(RADII), st.sampled_from(NORMS), st.booleans())
def test_no_jacobian_of_a_dag_is_above(seed, radius, norm, linear) -> None:
    graph = dag(seed)
    require_above(graph, balls_of(graph, radius, norm), linear=linear)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_jacobian_of_a_family_is_above(name) -> None:
    graph = family(name)
    for norm in NORMS:
        require_above(graph, balls_of(graph, 0.3, norm), linear=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_the_norm_at_the_centre_on_a_tiny_ball(name) -> None:
    graph = family(name)
    ball = balls_of(graph, 1e-9, 2)
    J = jacobians(graph, ball.centers)
    for p, q in CHEAP_PAIRS:
        torch.testing.assert_close(local_constants(graph, ball, p, q), operator_norms(J, p, q), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_linear_bounds_lose_nothing(name) -> None:
    graph, ball = family(name), balls_of(family(name), 0.5, 2)
    for p, q in CHEAP_PAIRS:
        plain = local_constants(graph, ball, p, q, linear=False)
        assert bool((local_constants(graph, ball, p, q) <= plain * (1.0 + 1e-9)).all())


def test_linear_bounds_gain_where_layers_follow() -> None:
    graph = graph_of(network(3, 4, ("relu",), width=12))
    ball = balls_of(graph, 0.3, "inf", count=6)
    plain = local_constants(graph, ball, "inf", "inf", linear=False)
    assert bool((local_constants(graph, ball, "inf", "inf") < 0.9 * plain).any())


@pytest.mark.parametrize("shift", [0.0, -0.5, -100.0])
def test_units_that_hand_nothing_on_are_left_out_and_nothing_changes(shift: float, monkeypatch) -> None:
    torch.manual_seed(3)
    widths = [6, 16, 16, 16, 16, 3]
    layers = [layer for n, m in pairwise(widths) for layer in (nn.Linear(n, m), nn.ReLU())][:-1]
    with torch.no_grad():
        layers[4].bias += shift
    graph = lipbridge.capture(nn.Sequential(*layers).double())
    ball = Ball(torch.randn(5, 6, dtype=torch.float64), 0.05, "inf")
    left_out: list[int] = []
    drop = Cotangents._without_still

    def seen(self: Cotangents, start: int, relaxed: dict) -> tuple[dict, dict]:
        found, kept = drop(self, start, relaxed)
        left_out.extend(len(places) for places in kept.values())
        return found, kept

    monkeypatch.setattr(Cotangents, "_without_still", seen)
    found = local_constants(graph, ball, "inf", "inf")
    assert left_out
    assert min(left_out) < 16
    assert shift > -100.0 or min(left_out) == 0
    monkeypatch.setattr(Cotangents, "_without_still", lambda self, start, relaxed: (relaxed, {}))
    torch.testing.assert_close(found, local_constants(graph, ball, "inf", "inf"), rtol=1e-12, atol=1e-200)


def test_regions_do_not_depend_on_their_company() -> None:
    graph = graph_of(network(5, 3, ("tanh", "relu")))
    ball = balls_of(graph, 0.4, "inf", count=5)
    for p, q in CHEAP_PAIRS:
        alone = [local_constants(graph, Ball(c[None], 0.4, "inf"), p, q) for c in ball.centers]
        torch.testing.assert_close(local_constants(graph, ball, p, q), torch.cat(alone), rtol=1e-9, atol=0)


def test_joint_slopes_of_crelu_are_no_wider_than_those_of_relu() -> None:
    """relu(t) + relu(-t) = |t|, and 2 relu(t) - relu(t) with them: the segment knows that one of the two is off."""
    module = lipbridge.mlp([2, 3, 2], "crelu").double()
    with torch.no_grad():
        module[-1].weight[:, 3:] = module[-1].weight[:, :3]  # the sum of both, |t|: slopes of one size on both sides
    graph = lipbridge.capture(module)
    (bound,) = local_constants(graph, None, "inf", "inf").tolist()
    first, last = (module[i].weight.detach() for i in (0, -1))
    patterns = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)
    every = max(float((last[:, :3] * d @ first).abs().sum(1).max()) for d in patterns)
    assert every <= bound <= float((last[:, :3].abs() @ first.abs()).sum(1).max()) * (1 + 1e-12)
    trivial = lipbridge.trivial_bound(graph, "inf").value
    assert bound < trivial


def test_rows_are_the_constants_of_differences() -> None:
    graph = graph_of(network(7, 3, ("relu",), width=9))
    ball = balls_of(graph, 0.2, 2, count=3)
    outputs = math.prod(graph.output_shape)
    rows = torch.randn(3, 4, outputs, dtype=torch.float64)
    for p in NORMS:
        found = row_constants(graph, ball, p, rows)
        assert found.shape == (3, 4)
        for i in range(3):
            composed = [graph.compose_output(rows[i, j : j + 1]) for j in range(4)]
            alone = [local_constants(g, Ball(ball.centers[i : i + 1], 0.2, 2), p, "inf") for g in composed]
            torch.testing.assert_close(found[i], torch.cat(alone), rtol=1e-8, atol=0)


def test_given_slopes_are_held() -> None:
    """One hidden layer: the largest norm over all vertices of the slopes, by enumeration."""
    graph = graph_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double())
    low, high = torch.tensor([[0.0, 0.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    slopes = {2: [(low.double(), high.double())]}
    first, last = graph.nodes[1].weight, graph.nodes[3].weight
    for p, q in CHEAP_PAIRS:
        vertices = [torch.tensor([a, b, 1.0, 0.0], dtype=torch.float64) for a in (0, 1) for b in (0, 1)]
        exact = max(float(operator_norms(((last * d) @ first)[None], p, q)) for d in vertices)
        found = float(norm_of_jacobians(graph, slopes, p, q))
        assert exact * (1 - 1e-12) <= found
        for d in vertices:
            point = {2: [(d[None], d[None])]}
            alone = float(operator_norms(((last * d) @ first)[None], p, q))
            assert float(norm_of_jacobians(graph, point, p, q)) == pytest.approx(alone, rel=1e-10)


def test_numbers_beyond_float64_tell_nothing() -> None:
    graph = graph_of(network(1, 3, ("relu",), "huge"))
    ball = Ball(torch.full((1, *graph.input_shape), 1e200, dtype=torch.float64), 1e200, 2)
    for p, q in CHEAP_PAIRS:
        assert not bool(local_constants(graph, ball, p, q).isnan().any())


@pytest.mark.parametrize("name", [*FAMILIES])
def test_it_runs_on_the_meta_device(name) -> None:
    graph = family(name).to("meta")
    ball = Ball(torch.zeros(3, *graph.input_shape, dtype=torch.float64), 0.1, 2)
    bounds = forward_bounds(graph, ball)
    for p, q in CHEAP_PAIRS:
        known = derivatives(graph, bounds, Context(2))
        found = Norms(graph, known, p, identity(graph), {}).matrix(q)
        assert found.device.type == "meta"
        assert found.shape in ((3,), (1,))  # a linear network is the same everywhere
    assert all(bound.lower.device.type == "meta" for bound in everywhere(graph))


def test_tiny_radii_keep_their_size() -> None:
    """Squares of row sums near 1e-200 underflow; the norm of such matrices does not."""
    radius = torch.full((1, 3, 4), 1e-200, dtype=torch.float64)
    exact = 1e-200 * math.sqrt(12.0)
    found = float(magnitudes_up(radius, 2, 2))
    assert exact <= found <= exact * (1 + 1e-9)
