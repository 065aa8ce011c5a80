"""Lowering to dense layers: the same function, exact where it says so, and chains of convolutional networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipbridge
from lipbridge import Problem, Question
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Concat, Conv, Dense, Elementwise, Input, Reshape
from lipbridge.lipsdp.multipliers import closed_form_bound
from lipbridge.lowering.chain import as_chain
from lipbridge.lowering.dense import lower_to_dense
from lipbridge.lowering.rewrites import lower_to_relu
from tests.support.convolution_nodes import convolutions
from tests.support.dags import dag


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60)
@given(convolutions(), st.integers(0, 10**6))
def test_a_convolution_is_its_matrix(case, seed: int) -> None:
    node, shape = case
    graph = Graph((Input("x", (), shape), node))
    lowered = lower_to_dense(graph)
    x = draw(seed, 5, *shape)
    torch.testing.assert_close(lowered.graph(x), graph(x).flatten(1), rtol=1e-12, atol=1e-12)
    assert [type(n) for n in lowered.graph] == [Input, Reshape, Dense]
    if node.padding_mode == "zeros":
        assert lowered.exact
    dense = lowered.graph.nodes[-1]
    assert isinstance(dense, Dense)
    assert set(dense.weight.unique().tolist()) <= {0.0, *node.weight.unique().tolist()} or not lowered.exact


@settings(max_examples=80)
@given(st.integers(0, 10**6))
def test_any_graph_keeps_its_function(seed: int) -> None:
    graph = dag(seed)
    x = draw(seed, 4, *graph.input_shape)
    expected = graph(x).flatten(1)
    if not bool(torch.isfinite(expected).all()):
        return
    lowered = lower_to_dense(graph).graph
    size = max(float(value.abs().max()) for value in graph.values(x))
    torch.testing.assert_close(lowered(x), expected, rtol=1e-7, atol=1e-9 * size)
    assert not any(isinstance(node, Conv) for node in lowered)


def network(norm: bool = False, mode: str = "zeros") -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 3, 3, stride=2, padding=1, padding_mode=mode)]
    if norm:
        layers.append(nn.BatchNorm2d(3))
    layers += [
        lipbridge.activation_module("crelu", dim=1),
        nn.Conv2d(6, 2, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 3),
    ]
    return nn.Sequential(*layers).eval()


def test_a_convolutional_network_is_read_as_a_chain() -> None:
    graph = lipbridge.capture(network(), (1, 8, 8))
    chain = as_chain(graph)
    assert [tuple(layer.weight.shape) for layer in chain.layers] == [(48, 64), (8, 96), (3, 8)]
    assert [activation.name for activation in chain.activations] == ["crelu", "relu"]
    x = draw(0, 4, 1, 8, 8)
    y = x.flatten(1)
    for layer, activation in zip(chain.layers, (*chain.activations, None), strict=True):
        y = y @ layer.weight.T if layer.bias is None else y @ layer.weight.T + layer.bias
        y = y if activation is None else activation(y)
    torch.testing.assert_close(y, graph(x), rtol=1e-12, atol=1e-12)


def test_lipsdp_takes_a_convolutional_network_and_is_above_its_witness() -> None:
    graph = lipbridge.capture(network(), (1, 8, 8))
    upper = closed_form_bound(graph)
    lower = lipbridge.search_lower_bound(
        Problem(graph, Question.everywhere(2)), seconds=5.0, restarts=8, steps=10, rounds=1
    )
    assert 0.0 < lower.value <= upper.value <= lipbridge.trivial_bound(lower_to_dense(graph).graph).value * (1 + 1e-7)


def test_batchnorm_is_folded_and_its_rounding_told() -> None:
    graph = lipbridge.capture(network(norm=True), (1, 8, 8))
    lowered = lower_to_dense(graph)
    assert not lowered.exact
    assert set(lowered.rounding) == {"1"}
    assert lowered.rounding["1"] < 1e-13
    assert [type(node) for node in lowered.graph][2:] == [Dense, Elementwise, Dense, Elementwise, Dense]
    x = draw(0, 4, 1, 8, 8)
    torch.testing.assert_close(lowered.graph(x), graph(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(UnsupportedProblem, match=r"`1` is rounded.*lower_to_dense"):
        as_chain(graph)
    as_chain(lowered.graph)


@pytest.mark.parametrize("name", ["abs", "crelu", "identity_abs", "leaky_relu"])
def test_activations_of_convolutions_are_lowered_to_relu(name: str) -> None:
    torch.manual_seed(0)
    width = lipbridge.activation(name).width
    act = lipbridge.activation_module(name, dim=1) if width > 1 else lipbridge.activation_module(name)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), act, nn.Conv2d(2 * width, 2, 2), nn.Flatten())
    graph = lipbridge.capture(module, (1, 6, 6))
    lowered = lower_to_relu(lower_to_dense(graph).graph)
    x = draw(0, 5, 1, 6, 6)
    torch.testing.assert_close(lowered(x), graph(x), rtol=1e-12, atol=1e-12)
    assert {node.activation.name for node in lowered if isinstance(node, Elementwise)} == {"relu"}


def test_blocks_and_joins_along_other_axes() -> None:
    crelu = lipbridge.activation("crelu")
    graph = Graph(
        (
            Input("x", (), (2, 3)),
            Elementwise("last", (0,), (2, 6), crelu),
            Elementwise("first", (1,), (4, 6), crelu, 0),
            Concat("cat", (2, 2), (4, 12), 1),
            Reshape("turn", (3,), (12, 4), (1, 0)),
        )
    )
    x = draw(0, 3, 2, 3)
    assert torch.equal(lower_to_dense(graph).graph(x), graph(x).flatten(1))
    assert lower_to_dense(graph).exact


def test_large_inputs_are_refused_in_words() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 3, 3))
    graph = lipbridge.capture(module, (3, 224, 224))
    with pytest.raises(UnsupportedProblem, match=r"`0` as a matrix would have .* too large"):
        as_chain(graph)
