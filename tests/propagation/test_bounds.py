"""Intervals of a network's values on balls: no value outside, exact where they can be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lipbridge
from lipbridge import Ball
from lipbridge.activations.registry import activation, activation_names
from lipbridge.errors import InvalidArgument, UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Dense, Elementwise, Input, Node, Reshape
from lipbridge.propagation.bounds import forward_bounds, layer_norms
from lipbridge.vocabulary import NORMS
from tests.support.enclosed import balls_of, require_inside
from tests.support.families import FLAVOURS, network
from tests.support.lipsdp_reference import graph_of

families = st.builds(
    network,
    seed=st.integers(0, 10**9),
    depth=st.integers(1, 5),
    activations=st.lists(st.sampled_from(activation_names()), min_size=1, max_size=2).map(tuple),
    flavour=st.sampled_from(FLAVOURS),
)


@settings(max_examples=40)
@given(families, st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 10.0]), st.sampled_from(NORMS), st.booleans(), st.booleans())
def test_no_value_is_outside(module, radius, norm, linear, known) -> None:
    graph = graph_of(module)
    ball = balls_of(graph, radius, norm)
    require_inside(graph, ball, forward_bounds(graph, ball, layer_norms(graph, norm) if known else None, linear=linear))


def test_layers_of_one_name_keep_their_own_norms() -> None:
    big, small = 10.0 * torch.eye(2, dtype=torch.float64), 0.1 * torch.eye(2, dtype=torch.float64)
    graph = Graph((Input("input", (), (2,)), Dense("same", (0,), (2,), big), Dense("same", (1,), (2,), small)))
    ball = balls_of(graph, 1.0, 2)
    require_inside(graph, ball, forward_bounds(graph, ball, layer_norms(graph, 2)))
    assert sorted(layer_norms(graph, 2).values()) == pytest.approx([0.1, 10.0])


class Branches(nn.Module):
    """Concat, Add, Reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 4), nn.Linear(8, 4), nn.Linear(4, 3)

    def forward(self, x):
        z = self.a(x.flatten(1)).relu()
        y = self.b(torch.cat([z, z.tanh()], -1))
        return self.c((y + z).sin())


@pytest.mark.parametrize("norm", NORMS)
def test_graphs_with_branches(norm) -> None:
    module = Branches().double()
    graph = lipbridge.capture(module, (2, 3))
    for radius in (1e-3, 0.5):
        ball = balls_of(graph, radius, norm)
        plain, linear = forward_bounds(graph, ball, linear=False), forward_bounds(graph, ball, layer_norms(graph, norm))
        require_inside(graph, ball, plain)
        require_inside(graph, ball, linear)
        assert float((linear[-1].upper - linear[-1].lower).sum()) < float((plain[-1].upper - plain[-1].lower).sum())


@pytest.mark.parametrize("name", ["crelu", "sincos", "tanh"])
@pytest.mark.parametrize("axis", [0, 1])
def test_channelwise_polyactivations(name, axis) -> None:
    """Blocks along either axis of (channels, length), and lines through both of two such layers."""
    row = activation(name)
    shapes = [(2, 3)]
    for _ in range(2):
        shape = list(shapes[-1])
        shape[axis] *= row.width
        shapes.append((shape[0], shape[1]))
    W = torch.randn(5, math.prod(shapes[2]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = Graph(
        (
            Input("input", (), shapes[0]),
            Elementwise("first", (0,), shapes[1], row, axis),
            Elementwise("second", (1,), shapes[2], row, axis),
            Reshape("flat", (2,), (W.shape[1],)),
            Dense("last", (3,), (5,), W),
            Elementwise("end", (4,), (5,), activation("relu")),
        )
    )
    ball = balls_of(graph, 0.3, 2)
    plain, linear = forward_bounds(graph, ball, linear=False), forward_bounds(graph, ball)
    require_inside(graph, ball, plain)
    require_inside(graph, ball, linear)
    assert float((linear[4].upper - linear[4].lower).sum()) < float((plain[4].upper - plain[4].lower).sum())


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_layer_is_exact(norm) -> None:
    layer = nn.Linear(5, 7).double()
    graph = graph_of(nn.Sequential(layer))
    ball = balls_of(graph, 0.3, norm)
    found = forward_bounds(graph, ball)[-1]
    dual = {1: math.inf, 2: 2, "inf": 1}[norm]
    room = 0.3 * torch.linalg.vector_norm(layer.weight.detach(), dual, dim=1)
    value = layer(ball.centers).detach()
    torch.testing.assert_close(found.lower, value - room, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.upper, value + room, rtol=1e-10, atol=1e-12)


def test_a_network_that_is_linear_on_the_ball_is_exact() -> None:
    """Lines follow fixed ReLUs: the composed matrix, not interval arithmetic."""
    torch.manual_seed(0)
    first, second = nn.Linear(4, 6).double(), nn.Linear(6, 5).double()
    with torch.no_grad():
        first.bias.fill_(100.0)
    graph = graph_of(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Linear(5, 1).double()))
    ball = balls_of(graph, 0.5, 2)
    found = forward_bounds(graph, ball)[3]
    room = 0.5 * torch.linalg.vector_norm(second.weight @ first.weight, 2, dim=1).detach()
    torch.testing.assert_close(found.upper - found.lower, (2 * room).expand(2, -1), rtol=1e-8, atol=1e-8)


def test_each_way_helps_somewhere() -> None:
    """A wide orthogonal layer: distances. A ball in l_inf through two layers: lines."""
    torch.manual_seed(0)
    Q = [torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0] for _ in range(3)]
    layers = [nn.Linear(64, 64, bias=False).double() for _ in Q]
    with torch.no_grad():
        for layer, matrix in zip(layers, Q, strict=True):
            layer.weight.copy_(matrix)
    graph = graph_of(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]))

    def width(norm, **ways) -> float:
        found = forward_bounds(graph, balls_of(graph, 0.3, norm), **ways)[3]
        return float((found.upper - found.lower).mean())

    assert width(2, norms=layer_norms(graph, 2), linear=False) < 0.5 * width(2, linear=False)
    assert width("inf", norms=layer_norms(graph, "inf")) < 0.8 * width(
        "inf", norms=layer_norms(graph, "inf"), linear=False
    )


@settings(max_examples=10)
@given(families, st.sampled_from(NORMS))
def test_overflow_is_infinite_not_wrong(module, norm) -> None:
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(1e150)
    graph = graph_of(module)
    for node_bounds in forward_bounds(graph, balls_of(graph, 1e10, norm)):
        assert not bool(
            node_bounds.lower.isnan().any() or node_bounds.upper.isnan().any() or (node_bounds.lower == math.inf).any()
        )
        assert not bool((node_bounds.upper == -math.inf).any())


def test_it_runs_where_tensors_have_no_values() -> None:
    for name in ("relu", "gelu", "sincos", "softplus"):
        graph = graph_of(network(1, 3, (name,))).to("meta")
        ball = Ball(torch.zeros(3, *graph.input_shape, dtype=torch.float64), 0.1, 2)
        found = forward_bounds(graph, ball)
        assert found[-1].lower.device.type == "meta"
        assert found[-1].lower.shape == (3, *graph.output_shape)


def test_errors() -> None:
    graph = graph_of(network(1, 3, ("relu",)))
    with pytest.raises(InvalidArgument, match="centers"):
        forward_bounds(graph, Ball(torch.zeros(2, 99, dtype=torch.float64), 1.0, 2))

    class Strange(Node):
        pass

    strange = Graph((Input("input", (), (3,)), Strange("odd", (0,), (3,))))
    with pytest.raises(UnsupportedProblem, match="odd"):
        forward_bounds(strange, Ball(torch.zeros(1, 3, dtype=torch.float64), 1.0, 2))
