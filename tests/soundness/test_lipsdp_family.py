"""LipSDP on families of networks: sound everywhere and on balls, monotone in the slopes, invariant.

The normal run walks 60 networks; the study of 2,000 is marked ``slow``.
"""

from __future__ import annotations

import copy
import itertools
import math
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import lipbridge
from lipbridge import Ball, Problem, Question, search_lower_bound, trivial_bound
from lipbridge.activations.registry import activation_names
from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp.multipliers import closed_form_bound
from lipbridge.lipsdp.system import Intervals, lipsdp_of
from lipbridge.verifiers import Budget
from lipbridge.verifiers.eclipse_fast import EclipseFastVerifier
from lipbridge.verifiers.lipsdp_fast import LipSDPFastVerifier, bound_system
from lipbridge.vocabulary import NORMS
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import graph_of

FAST, CLOSED = LipSDPFastVerifier(), EclipseFastVerifier()
GAP = 1e-3
BUDGET = Budget(seconds=60.0, options={"gap": GAP})
PLAIN = Budget(seconds=60.0)

families = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(1, 8),
    activations=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=3).map(tuple),
    flavour=st.sampled_from(FLAVOURS),
    bias=st.booleans(),
    width=st.just(5),
)
tame = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(2, 5),
    activations=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(["random", "rank_one", "orthogonal", "integers"]),
)


def bounds(problem: Problem) -> list[lipbridge.Bound] | None:
    """Of both verifiers; None if float64 has no room for the network, which is no crash."""
    try:
        return [CLOSED.prepare(problem).bound(PLAIN), FAST.prepare(problem).bound(BUDGET)]
    except NumericalFailure:
        return None


def quotient(graph, points: torch.Tensor) -> float:
    """The largest difference quotient of neighbours in a list, less a generous rounding: it knows nothing of ours."""
    values = graph.values(points)
    size = torch.stack([value.flatten(1).abs().amax(1) for value in values]).amax(0)
    top = torch.linalg.vector_norm(values[-1].diff(dim=0), dim=1) - 1e-12 * (size[1:] + size[:-1])
    found = top / torch.linalg.vector_norm(points.diff(dim=0), dim=1)
    found = found[torch.isfinite(found)] * (1 - 2.0**-46)  # norms of a few entries and a quotient
    return float(found.max()) if len(found) else 0.0


def inside(ball: Ball, seed: int) -> torch.Tensor:
    """Random points of the first ball."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, *ball.centers.shape[1:], generator=generator, dtype=torch.float64)
    p = {1: 1, 2: 2, "inf": math.inf}[ball.norm]
    x = x / torch.linalg.vector_norm(x, p, dim=1, keepdim=True).clamp_min(1e-300)
    return ball.centers[0] + x * ball.radius * (1 - 1e-9) * torch.rand(60, 1, generator=generator, dtype=torch.float64)


def study(module: nn.Sequential, radius: float, norm, seed: int) -> None:
    """One network: both verifiers, everywhere and on a ball, against witnesses of each region."""
    graph = graph_of(module)
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(1, *graph.input_shape, generator=generator, dtype=torch.float64)
    ball = Ball(centers, radius, norm)
    everywhere, local = bounds(Problem(graph, Question.everywhere(2))), bounds(Problem(graph, Question.on(ball, 2)))
    if everywhere is None:
        with pytest.raises(NumericalFailure):
            trivial_bound(graph)
        return
    assert local is not None
    for region, found in ((None, everywhere), (ball, local)):
        witness = search_lower_bound(
            Problem(graph, Question(input_norm=2, output_norm=2, region=region)),
            seconds=5,
            restarts=4,
            steps=8,
            rounds=1,
        )
        points = inside(ball, seed)
        for bound in found:
            assert bound.proved
            assert witness.value <= bound.value
            assert quotient(graph, points) <= bound.value
        assert found[1].value <= found[0].value
    for bound, above in zip(local, everywhere, strict=True):
        assert bound.value <= above.value * (1 + 1.1 * GAP)
    assert everywhere[0].value <= trivial_bound(graph).value * (1 + 1e-6)


arguments = (
    families,
    st.sampled_from([1e-9, 1e-4, 1e-2, 0.3, 3.0, 1e3]),
    st.sampled_from(NORMS),
    st.integers(0, 10**6),
)


@settings(max_examples=30)
@given(*arguments)
def test_no_proved_bound_is_below_a_witness(module, radius, norm, seed) -> None:
    study(module, radius, norm, seed)


@pytest.mark.slow
def test_no_proved_bound_of_2000_networks_is_below_a_witness() -> None:
    count = 0

    @settings(max_examples=2000, suppress_health_check=list(HealthCheck))
    @given(*arguments)
    def walk(module, radius, norm, seed) -> None:
        nonlocal count
        count += 1
        study(module, radius, norm, seed)

    walk()
    assert count >= 2000


# --- monotone in the slope interval ----------------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    st.integers(0, 10**6),
    st.integers(2, 4),
    st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=2, unique=True).map(sorted),
)
def test_a_narrower_slope_interval_has_no_larger_bound(seed, depth, slopes) -> None:
    """Leaky ReLUs: [s, 1] shrinks as s grows."""
    values: list[float] = []
    for slope in slopes:
        module = network(seed, depth, ("leaky_relu",))
        for layer in module:
            if isinstance(layer, nn.LeakyReLU):
                layer.negative_slope = slope
        values.append(FAST.prepare(Problem(lipbridge.capture(module), Question.everywhere(2))).bound(BUDGET).value)
    assert values[1] <= values[0] * (1 + 1.1 * GAP)


@settings(max_examples=12)
@given(tame, st.integers(0, 10**6), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_smaller_intervals_have_no_larger_bound(module, seed, narrow, more) -> None:
    """Intervals of each unit, nested, by hand."""
    graph = graph_of(module)
    generator = torch.Generator().manual_seed(seed)
    units = [node.shape[0] for node in graph.nodes[1:-1] if type(node).__name__ == "Dense"]
    middles = [torch.randn(u, generator=generator, dtype=torch.float64) for u in units]
    deviations = [torch.rand(u, generator=generator, dtype=torch.float64) for u in units]
    region = Ball(torch.zeros(1, *graph.input_shape), 1.0, 2)  # whichever
    values = []
    for width in (narrow, narrow + more):
        intervals = [(m - width * d, m + width * d) for m, d in zip(middles, deviations, strict=True)]
        system = lipsdp_of(graph, Intervals(region, intervals))
        values.append(bound_system(system, GAP, time.perf_counter() + 60, torch.device("cpu")).value)
    assert values[0] <= values[1] * (1 + 1.1 * GAP) + 1e-300


# --- invariances -----------------------------------------------------------------------------------------------------


def linears(module: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in module if isinstance(layer, nn.Linear)]


@settings(max_examples=10)
@given(tame, st.integers(0, 10**6), st.booleans())
def test_permuted_units_and_turned_inputs_change_nothing(module, seed, local) -> None:
    twin = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    n = linears(module)[0].in_features
    Q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    with torch.no_grad():
        layers = linears(twin)
        layers[0].weight.copy_(layers[0].weight @ Q)
        for first, second in itertools.pairwise(layers):
            m = first.out_features
            order = torch.randperm(m, generator=generator)
            first.weight.copy_(first.weight[order])
            first.bias.copy_(first.bias[order])
            columns = torch.cat([order + k * m for k in range(second.in_features // m)])
            second.weight.copy_(second.weight[:, columns])
    center = torch.randn(1, n, generator=generator, dtype=torch.float64)
    regions = (Ball(center, 0.3, 2), Ball(center @ Q, 0.3, 2)) if local else (None, None)
    found = [
        FAST.prepare(Problem(graph_of(net), Question(input_norm=2, output_norm=2, region=region))).bound(BUDGET).value
        for net, region in zip((module, twin), regions, strict=True)
    ]
    assert found[1] == pytest.approx(found[0], rel=1.5 * GAP)


@pytest.mark.parametrize("name", activation_names())
def test_the_bound_scales_with_the_output(name) -> None:
    module = network(7, 3, (name,))
    before = closed_form_bound(graph_of(module)).value
    with torch.no_grad():
        linears(module)[-1].weight.mul_(2.0**-30)
    assert closed_form_bound(graph_of(module)).value == before * 2.0**-30
