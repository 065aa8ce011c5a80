"""Bounds by a line on either side of each activation, and on parts of balls: no value outside, and never wider."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge import Ball
from lipbridge.activations.registry import activation_names
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.propagation.forms import least_of_forms
from lipbridge.search.starts import in_balls
from lipbridge.vocabulary import NORMS
from tests.support.dags import dag
from tests.support.enclosed import balls_of, require_inside
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import graph_of

families = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(2, 4),
    activations=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(FLAVOURS),
)


@settings(max_examples=20)
@given(families, st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 10.0]), st.sampled_from(NORMS), st.sampled_from([0, 3]))
def test_no_value_of_a_chain_is_outside(module, radius, norm, steps) -> None:
    graph = graph_of(module)
    ball = balls_of(graph, radius, norm)
    require_inside(graph, ball, forward_bounds(graph, ball, layer_norms(graph, norm), steps=steps))


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.sampled_from([1e-3, 0.3, 3.0]), st.sampled_from(NORMS))
def test_no_value_of_a_dag_is_outside(seed, radius, norm) -> None:
    graph = dag(seed)
    ball = balls_of(graph, radius, norm)
    require_inside(graph, ball, forward_bounds(graph, ball, layer_norms(graph, norm), steps=2))


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "crelu"])
def test_they_narrow(name) -> None:
    graph = graph_of(network(2, 4, (name,), width=10))
    ball = balls_of(graph, 0.3, "inf", count=4)
    widths = []
    for steps in (None, 0, 10):
        found = forward_bounds(graph, ball, layer_norms(graph, "inf"), steps=steps)
        widths.append(float((found[-2].upper - found[-2].lower).sum()))
    assert widths[0] > 1.001 * widths[1]
    assert widths[1] >= widths[2] * (1 - 1e-12)
    assert name == "tanh" or widths[1] > 1.0001 * widths[2]  # lines are optimised at kinks


@settings(max_examples=20)
@given(families, st.sampled_from(NORMS), st.integers(0, 10**6))
def test_what_satisfies_the_cuts_is_inside_a_part(module, norm, seed) -> None:
    graph = graph_of(module)
    ball = balls_of(graph, 1.0, norm, count=1)
    x, _ = in_balls(ball, 200, torch.Generator().manual_seed(seed))
    values = graph.values(x)
    narrowing, held = {}, torch.ones(len(x), dtype=torch.bool)
    for index in (0, 1):
        cut = values[index].flatten(1)[seed % len(x)]
        below = torch.arange(len(cut)) % 2 == seed % 2
        lower = torch.where(below, -torch.inf, cut)
        upper = torch.where(below, cut, torch.inf)
        narrowing[index] = lower.reshape(1, *graph.nodes[index].shape), upper.reshape(1, *graph.nodes[index].shape)
        held &= ((values[index].flatten(1) >= lower) & (values[index].flatten(1) <= upper)).all(1)
    assert bool(held.any())
    found = forward_bounds(graph, ball, layer_norms(graph, norm), steps=0, narrowing=narrowing)
    for value, own in zip(values, found, strict=True):
        slack = 1e-12 * value[held].abs().max() + 1e-12
        assert bool(((value[held] >= own.lower - slack) & (value[held] <= own.upper + slack)).all())


def test_a_part_that_holds_no_input_shows_it() -> None:
    graph = graph_of(network(4, 3, ("relu",), width=8))
    ball = Ball(torch.zeros(1, *graph.input_shape, dtype=torch.float64), 0.1, "inf")
    (bound,) = forward_bounds(graph, ball)[1:2]
    beyond = bound.upper + 1.0
    found = forward_bounds(graph, ball, narrowing={1: (beyond, torch.full_like(beyond, torch.inf))})
    assert bool((found[1].lower > found[1].upper).any())


@settings(max_examples=15)
@given(families, st.sampled_from([1e-3, 0.1, 1.0]), st.sampled_from(NORMS), st.integers(0, 10**6))
def test_no_combination_of_outputs_is_less(module, radius, norm, seed) -> None:
    graph = graph_of(module)
    ball = balls_of(graph, radius, norm)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(ball.centers), 3, graph.output_shape[0], generator=generator, dtype=torch.float64)
    least = least_of_forms(graph, ball, rows, layer_norms(graph, norm))
    assert least.shape == (len(ball.centers), 3)
    x, domain = in_balls(ball, 100, generator)
    index = [int((ball.centers == center).flatten(1).all(1).nonzero()[0, 0]) for center in domain.centers]
    values = (rows[index] @ graph(x)[..., None]).squeeze(-1)
    slack = 1e-12 * (rows[index].abs() @ graph(x).abs()[..., None]).squeeze(-1)
    assert bool((values + slack.nan_to_num(1.0) >= least[index]).all())


def test_a_combination_is_better_than_its_parts() -> None:
    graph = graph_of(network(2, 3, ("relu",), width=10))
    ball = balls_of(graph, 0.3, 2, count=5)
    found = forward_bounds(graph, ball, layer_norms(graph, 2), steps=0, open_only=True)[-1]
    rows = torch.zeros(1, 1, graph.output_shape[0], dtype=torch.float64)
    rows[0, 0, 0], rows[0, 0, -1] = 1.0, -1.0
    apart = found.lower[:, 0] - found.upper[:, -1]
    assert graph.output_shape[0] > 1
    together = least_of_forms(graph, ball, rows, layer_norms(graph, 2))[:, 0]
    assert bool((together >= apart - 1e-12 * apart.abs()).all())
    assert bool((together > apart + 1e-3).any())
