"""The weights that a penalty reads in every call: which are read, with which scale, and that copies are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lipbridge
from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.capture import read_module
from lipbridge.graph.graph import Graph
from lipbridge.graph.nodes import Conv, Dense, Elementwise
from lipbridge.training.live_weights import LiveLayer, check_live, live_layers


class Branches(nn.Module):
    """A convolution, what is made of it, and its normalisation."""

    def __init__(self, function: Callable[[Branches, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 2.0)
            self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def read(module: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, dict[int, LiveLayer]]:
    reading = read_module(module.eval(), shape)
    return reading.graph, live_layers(module, reading)


def of_kind(graph: Graph, layers: dict[int, LiveLayer], diagonal: bool) -> LiveLayer:
    (found,) = [
        layer
        for index, layer in layers.items()
        if isinstance(node := graph.nodes[index], Conv) and node.diagonal is diagonal
    ]
    return found


def test_the_scale_of_a_normalisation_counts_with_the_layer_before_it() -> None:
    module = Branches(lambda m, x: m.norm(m.conv(x)))
    _, layers = read(module, (2, 5, 5))
    (layer,) = layers.values()
    assert layer.scale is not None
    assert not layer.direct
    scale = module.norm.weight / (module.norm.running_var + module.norm.eps).sqrt()
    torch.testing.assert_close(layer.read(), module.conv.weight * scale[:, None, None, None])
    layer.read().sum().backward()
    assert module.norm.weight.grad is not None
    assert module.conv.weight.grad is not None


@pytest.mark.parametrize(
    "function",
    [lambda m, y: m.norm(y) + y.relu(), lambda m, y: y.relu() + m.norm(y), lambda m, y: torch.cat([m.norm(y), y], 1)],
)
def test_a_scale_of_what_others_read_too_is_a_layer_of_its_own(function) -> None:
    module = Branches(lambda m, x: function(m, m.conv(x)))
    graph, layers = read(module, (2, 5, 5))
    conv, norm = of_kind(graph, layers, False), of_kind(graph, layers, True)
    assert conv.scale is None
    assert conv.direct
    torch.testing.assert_close(conv.read(), module.conv.weight)
    assert norm.scalar
    assert not conv.scalar
    expected = module.norm.weight / (module.norm.running_var + module.norm.eps).sqrt()
    torch.testing.assert_close(norm.read().flatten(), expected)


def test_frozen_weights_take_no_gradient() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    module[0].weight.requires_grad_(False)
    graph, layers = read(module, (3,))
    direct = [layers[i].direct for i, node in enumerate(graph.nodes) if isinstance(node, Dense)]
    assert direct == [False, True]


def test_constants_of_a_weight_s_computation_have_the_module_s_dtype() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * torch.linspace(0.5, 1.5, 3))

    module = Weighted()
    for dtype in (torch.float32, torch.float64):
        _, layers = read(module.to(dtype), (3,))
        (layer,) = layers.values()
        assert layer.read().dtype == dtype
        torch.testing.assert_close(layer.read(), module.weight * torch.linspace(0.5, 1.5, 3, dtype=dtype))


def test_other_tensors_than_those_of_a_fresh_capture_are_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    graph, layers = read(module, (3,))
    fresh = lipbridge.capture(module)
    check_live(layers, graph, fresh)
    # Another node, which no layer with weights is.
    tanh = lipbridge.activation("tanh")
    other = [replace(node, activation=tanh) if isinstance(node, Elementwise) else node for node in fresh]
    with pytest.raises(UnsupportedOperation, match="copy of a weight"):
        check_live(layers, graph, Graph(tuple(other)))
    with pytest.raises(UnsupportedOperation, match="copy of a weight"):
        check_live(layers, graph, Graph(fresh.nodes[:2]))
    # A layer that now reads something else than both Graphs hold.
    held = Graph(tuple(replace(n, weight=n.weight.clone()) if isinstance(n, Dense) else n for n in fresh))
    with torch.no_grad():
        module[2].weight *= 1.01
    with pytest.raises(UnsupportedOperation, match="copy of a weight"):
        check_live(layers, held, held)
