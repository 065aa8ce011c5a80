"""Intervals through convolutions, pooling, sorting and normalisation: no value outside, and no wider than need be."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipbridge import Ball, activation
from lipbridge.errors import NumericalFailure
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise, GroupSort, MaxPool, Node, Normalize, Softmax
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.vocabulary import NORMS, Norm, dual, exponent
from tests.support.chains import act, chain, conv, flattened, normal
from tests.support.dags import MODES, dag
from tests.support.enclosed import balls_of, require_inside


def width(node_bounds) -> float:
    return float((node_bounds.upper - node_bounds.lower).mean())


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 10.0]), st.sampled_from(NORMS), st.booleans())
def test_no_value_of_a_dag_is_outside(seed: int, radius: float, norm: Norm, linear: bool) -> None:
    graph = dag(seed)
    ball = balls_of(graph, radius, norm)
    try:
        norms = layer_norms(graph, norm)
    except NumericalFailure:
        norms = None
    values = graph(ball.centers)
    if bool(values.isfinite().all()):
        require_inside(graph, ball, forward_bounds(graph, ball, norms, linear=linear))


GEOMETRIES = [
    {"padding_mode": mode, "padding": pad, "stride": stride, "groups": groups, "dilation": dilation}
    for mode, pad, stride, groups, dilation in [
        *((mode, ((1, 1), (1, 1)), (1, 1), 1, (1, 1)) for mode in MODES),
        *((mode, ((2, 1), (0, 2)), (2, 1), 2, (1, 2)) for mode in MODES),
        ("circular", ((4, 4), (4, 4)), (1, 2), 1, (4, 2)),
        ("replicate", ((5, 0), (3, 3)), (3, 2), 2, (2, 1)),
    ]
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_rows_of_a_convolution(geometry, norm: Norm) -> None:
    """On a ball at the input every output has exactly its row's dual norm as radius, where no taps meet."""
    graph = chain((2, 4, 4), conv(1, 4, 2, **geometry))
    ball = balls_of(graph, 0.3, norm)
    (found,) = forward_bounds(graph, ball, layer_norms(graph, norm))[1:]
    matrix = lower_to_dense(graph).graph.nodes[-1]
    assert isinstance(matrix, Dense)
    room = 0.3 * torch.linalg.vector_norm(matrix.weight, exponent(dual(norm)), dim=1)
    half = (0.5 * (found.upper - found.lower)).flatten(1)
    assert bool((half >= room * (1.0 - 1e-12)).all())
    if geometry["padding_mode"] == "zeros" and norm != 1:
        torch.testing.assert_close(half, room.expand(2, -1), rtol=1e-9, atol=1e-12)
    elif geometry["padding_mode"] == "zeros":  # one bound for the whole channel, with the taps in padding
        assert float(half.amax()) <= 0.3 * float(conv(1, 4, 2, **geometry).weight.abs().amax()) * (1.0 + 1e-9)
    require_inside(graph, ball, [forward_bounds(graph, ball)[0], found])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_as_tight_as_the_same_network_of_dense_layers(geometry, norm: Norm) -> None:
    body = chain((2, 5, 5), conv(1, 4, 2, **geometry), act("abs"), conv(3, 4, 4, (1, 1), padding=((0, 0),) * 2))
    body = Graph((*body.nodes, replace(flattened(body), inputs=(3,))))
    graph = Graph((*body.nodes, Elementwise("relu", (4,), body.output_shape, activation("relu"))))
    dense = lower_to_dense(graph).graph
    ball = balls_of(graph, 0.1, norm)
    ours, theirs = (forward_bounds(g, ball, layer_norms(g, norm))[-2] for g in (graph, dense))
    # In l_1 an output at the border counts with the channel's largest tap, even if that is in the padding.
    assert width(ours) <= width(theirs) * (1.15 if norm == 1 else 1.001)
    lower, upper = theirs.lower, theirs.upper
    overlap = torch.minimum(ours.upper, upper) - torch.maximum(ours.lower, lower)
    assert bool((overlap >= 0).all())  # both hold the same values
    require_inside(graph, ball, forward_bounds(graph, ball, layer_norms(graph, norm)))


def _exact_conv(weight: torch.Tensor, x: torch.Tensor) -> list[Fraction]:
    """One output of a valid 2d convolution a channel, in rational numbers."""
    return [
        sum(
            (Fraction(float(w)) * Fraction(float(t)) for w, t in zip(W.flatten(), x.flatten(), strict=True)), Fraction()
        )
        for W in weight
    ]


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e150])
def test_rounding_of_a_convolution_that_cancels(scale: float) -> None:
    """Two taps that cancel to the last digits: the exact value is in the interval of a tiny ball."""
    for seed in range(20):
        W = normal(seed, 3, 2, 3, 3)
        W[:, 1] = -W[:, 0] * (1 + 1e-15)
        x = normal(seed + 50, 1, 1, 3, 3).expand(1, 2, 3, 3) * 1e3
        node = Conv("c", (), (), W * scale, None, (1, 1), ((0, 0), (0, 0)), (1, 1))
        found = forward_bounds(chain((2, 3, 3), node), Ball(x, 1e-300, "inf"))[-1]
        for exact, low, high in zip(
            _exact_conv(W * scale, x), found.lower.flatten(), found.upper.flatten(), strict=True
        ):
            assert Fraction(float(low)) <= exact <= Fraction(float(high))


def test_batchnorm_behind_a_convolution_is_composed() -> None:
    """Lines go through two linear layers: intervals know their product, not only each by itself."""
    scale = Conv("scale", (), (), normal(5, 4, 1, 1, 1), None, (1, 1), ((0, 0),) * 2, (1, 1), 4)
    graph = chain((2, 5, 5), conv(1, 2, 2, bias=False), conv(2, 4, 2, bias=False), scale, act("relu"))
    ball = balls_of(graph, 0.2, "inf")
    matrix = lower_to_dense(replace(graph, nodes=graph.nodes[:-1])).graph.nodes[-1]
    assert isinstance(matrix, Dense)
    found = forward_bounds(graph, ball)[3]
    room = 0.2 * matrix.weight.abs().sum(1)
    torch.testing.assert_close((found.upper - found.lower).flatten(1), 2 * room.expand(2, -1), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "kind",
    [
        "pool",
        "padded pool",
        "sort 2",
        "sort 4",
        "layer norm",
        "group norm",
        "rms norm",
        "softmax",
        "log-softmax",
        "crelu",
        "sin",
    ],
)
def test_lines_through_every_layer(kind: str, norm: Norm) -> None:
    middle: dict[str, Node] = {
        "pool": MaxPool("pool", (), (), (2, 2), (2, 2), (0, 0), (1, 1)),
        "padded pool": MaxPool("pool", (), (), (3, 2), (1, 2), (1, 1), (1, 1)),
        "sort 2": GroupSort("sort", (), (), 2),
        "sort 4": GroupSort("sort", (), (), 4),
        "layer norm": Normalize("norm", (), (), 1, 1e-5),
        "group norm": Normalize("norm", (), (), 2, 0.1),
        "rms norm": Normalize("norm", (), (), 2, 0.1, False),
        "softmax": Softmax("softmax", (), (), 0),
        "log-softmax": Softmax("softmax", (), (), 1, True),
        "crelu": act("crelu"),
        "sin": act("sin"),
    }
    front = chain((2, 6, 6), conv(1, 4, 2), middle[kind])
    channels = front.output_shape[0]
    back = chain(front.output_shape, conv(7, 2, channels), act("relu"))
    shifted = [replace(node, inputs=tuple(i + 2 for i in node.inputs)) for node in back.nodes[1:]]
    graph = Graph((*front.nodes, *shifted))
    for radius in (1e-3, 0.1, 3.0):
        ball = balls_of(graph, radius, norm)
        norms = layer_norms(graph, norm)
        plain, linear = (forward_bounds(graph, ball, norms, linear=ways) for ways in (False, True))
        require_inside(graph, ball, plain)
        require_inside(graph, ball, linear)
        assert width(linear[-2]) <= width(plain[-2]) * (1 + 1e-9)
        if radius == 1e-3 and norm == "inf":
            assert width(linear[-2]) < 0.9 * width(plain[-2])


def test_fixed_orders_are_exact() -> None:
    """Where no maximum can change its entry, pooling and sorting are linear, and the composed matrix bounds them."""
    places = torch.arange(32.0, dtype=torch.float64).reshape(1, 2, 4, 4) * 10
    for node in (MaxPool("p", (), (), (2, 2), (1, 1), (0, 0), (1, 1)), GroupSort("s", (), (), 2)):
        graph = chain((2, 4, 4), node, conv(3, 2, 2, bias=False), act("relu"))
        found = forward_bounds(graph, Ball(places, 0.5, "inf"))[-2]
        unit = torch.eye(32, dtype=torch.float64).reshape(32, 2, 4, 4)
        body = replace(graph, nodes=graph.nodes[:-1])
        columns = (body(places + unit) - body(places)).flatten(1)
        room = 0.5 * columns.abs().sum(0)
        torch.testing.assert_close((found.upper - found.lower).flatten(), 2 * room, rtol=1e-8, atol=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5]), st.sampled_from([1e-12, 1e-5, 10.0]), st.sampled_from(NORMS))
def test_normalisation_holds_at_its_extremes(seed: int, n: int, epsilon: float, norm: Norm) -> None:
    """Around constant runs, where the slope is 1 / sqrt(epsilon), and with one entry far from the others."""
    graph = chain((n,), Normalize("norm", (), (), 1, epsilon))
    spread = normal(seed, 1, n) * 10.0 ** (seed % 7 - 5)
    for radius in (1e-8, 1e-3, 1.0, 100.0):
        ball = Ball(spread + 1.0, radius, norm)
        found = forward_bounds(graph, ball)
        require_inside(graph, ball, found)
        assert float(found[-1].upper.amax()) <= math.sqrt(n - 1) * (1 + 1e-12)


def test_normalisation_is_local_where_the_variance_is_large() -> None:
    """Far from constant runs the distance is the input's over the deviation, not over sqrt(epsilon)."""
    graph = chain((8,), Normalize("norm", (), (), 1, 1e-10))
    found = forward_bounds(graph, Ball(100 * normal(0, 1, 8), 0.01, 2))[-1]
    assert float(found.distance) < 1e-3


@pytest.mark.parametrize("axes", [(5, 3), (2, 4, 3)])
@pytest.mark.parametrize("norm", NORMS)
def test_dense_layers_on_the_last_of_several_axes(axes, norm: Norm) -> None:
    W, b, V = normal(0, 4, 3), normal(1, 4), normal(2, 2, 4)
    graph = chain(axes, Dense("one", (), (), W, b), act("tanh"), Dense("two", (), (), V), act("relu"))
    ball = balls_of(graph, 0.2, norm)
    found = forward_bounds(graph, ball, layer_norms(graph, norm))
    require_inside(graph, ball, found)
    room = 0.2 * torch.linalg.vector_norm(W, exponent(dual(norm)), dim=1)
    half = 0.5 * (found[1].upper - found[1].lower)
    torch.testing.assert_close(half, room.expand_as(half), rtol=1e-9, atol=1e-12)


def test_it_runs_where_tensors_have_no_values() -> None:
    layers = (
        conv(1, 4, 2),
        MaxPool("pool", (), (), (2, 2), (2, 2), (0, 0), (1, 1)),
        act("crelu"),
        GroupSort("sort", (), (), 2),
        Normalize("norm", (), (), 2, 0.1),
        conv(2, 4, 8, padding_mode="circular"),
        Softmax("softmax", (), (), 0),
        act("relu"),
    )
    graph = chain((2, 6, 6), *layers).to("meta")
    found = forward_bounds(graph, Ball(torch.zeros(3, 2, 6, 6, dtype=torch.float64), 0.1, 2))
    assert found[-1].lower.device.type == "meta"
    assert found[-1].lower.shape == (3, *graph.output_shape)


@pytest.mark.parametrize(("norm", "seed"), list(itertools.product(NORMS, range(3))))
def test_overflow_is_infinite_not_wrong(norm: Norm, seed: int) -> None:
    first, second = conv(seed, 4, 2), conv(seed + 1, 2, 4)
    graph = chain(
        (2, 4, 4),
        replace(first, weight=first.weight * 1e200),
        MaxPool("pool", (), (), (2, 2), (1, 1), (0, 0), (1, 1)),
        GroupSort("sort", (), (), 2),
        replace(second, weight=second.weight * 1e200),
        Normalize("norm", (), (), 1, 1e-5),
        act("relu"),
    )
    for node_bounds in forward_bounds(graph, balls_of(graph, 1e10, norm)):
        assert not bool(
            node_bounds.lower.isnan().any() or node_bounds.upper.isnan().any() or (node_bounds.lower == math.inf).any()
        )
        assert not bool(node_bounds.distance.isnan().any() or (node_bounds.upper == -math.inf).any())
