"""The builder and the sinusoidal layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.files import graphs
from lipbridge.graph.nodes import Elementwise
from lipbridge.layers.layers import GroupSort, MaxMin, SinusoidalConv1d, SinusoidalConv2d


def test_mlp_is_a_plain_sequential_with_the_widths_asked_for() -> None:
    module = lipbridge.mlp([784, 256, 256, 10], "abs", bias=False)
    assert type(module) is nn.Sequential
    shapes = [tuple(layer.weight.shape) for layer in module if isinstance(layer, nn.Linear)]
    assert shapes == [(256, 784), (256, 256), (10, 256)]
    assert all(layer.bias is None for layer in module if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("name", lipbridge.activation_names())
def test_polyactivations_widen_the_next_layer(name: str) -> None:
    module = lipbridge.mlp([5, 4, 3, 2], name)
    assert module(torch.zeros(7, 5)).shape == (7, 2)
    assert module[2].in_features == 4 * lipbridge.activation(name).width


def test_parameters_reach_the_activation() -> None:
    assert lipbridge.mlp([2, 2, 2], "leaky_relu", negative_slope=0.3)[1].negative_slope == 0.3


@pytest.mark.parametrize("widths", [[], [3], [3, 0, 2], [3, -1, 2], [3, 2.5, 2], [3, True, 2]])
def test_bad_widths(widths) -> None:
    with pytest.raises(InvalidArgument, match="widths"):
        lipbridge.mlp(widths)


def test_unknown_activation() -> None:
    with pytest.raises(UnknownName, match="swish"):
        lipbridge.mlp([2, 3, 2], "swish")


def test_sinusoidal_layer() -> None:
    torch.manual_seed(0)
    layer = lipbridge.Sinusoidal(40, 300, scale=2.0)
    x = torch.randn(6, 40)
    y = layer(x)
    assert y.shape == (6, 600)
    torch.testing.assert_close(y[:, :300] ** 2 + y[:, 300:] ** 2, torch.ones(6, 300))
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert float(layer.weight.detach().std()) == pytest.approx(2.0 / 40**0.5, rel=0.05)
    with pytest.raises(InvalidArgument, match="out_features"):
        lipbridge.Sinusoidal(3, 0)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("axes", [1, 2])
def test_sinusoidal_convolution(axes: int, mode: str) -> None:
    kind = (SinusoidalConv1d, SinusoidalConv2d)[axes - 1]
    layer = kind(2, 6, 3, stride=2, padding=1, groups=2, padding_mode=mode, scale=2.0).double()
    plain = (nn.Conv1d, nn.Conv2d)[axes - 1](2, 6, 3, 2, 1, 1, 2, bias=False, padding_mode=mode).double()
    plain.weight = layer.weight
    x = torch.randn(4, 2, *(7,) * axes, dtype=torch.float64)
    torch.testing.assert_close(layer(x), torch.cat([plain(x).sin(), plain(x).cos()], 1))
    graph = lipbridge.capture(layer, tuple(x.shape[1:]))
    assert [type(node).__name__ for node in graph] == ["Input", "Conv", "Elementwise"]
    torch.testing.assert_close(graph(x), layer(x))
    linear = lipbridge.trivial_bound(lipbridge.capture(plain, tuple(x.shape[1:]))).value
    assert lipbridge.trivial_bound(graph).value == pytest.approx(linear, rel=1e-12)
    with pytest.raises(InvalidArgument, match="groups"):
        kind(3, 4, 3, groups=2)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 3, 2)])
def test_sorting_layers(shape: tuple[int, ...]) -> None:
    x = torch.randn(5, *shape, dtype=torch.float64)
    pairs = x.reshape(5, 3, 2, *shape[1:])
    expected = torch.stack([pairs.amin(2), pairs.amax(2)], 2).reshape(x.shape)
    assert torch.equal(GroupSort(2)(x), expected)
    assert torch.equal(
        MaxMin()(x), torch.cat([torch.maximum(x[:, :3], x[:, 3:]), torch.minimum(x[:, :3], x[:, 3:])], 1)
    )
    for module in (GroupSort(3), GroupSort(2), MaxMin()):
        graph = lipbridge.capture(module, shape)
        assert torch.equal(graph(x), module(x))
        assert [lipbridge.trivial_bound(graph, p).value for p in (1, 2, "inf")] == [1.0, 1.0, 1.0]
    with pytest.raises(InvalidArgument, match="group"):
        GroupSort(0)


@pytest.mark.parametrize("name", ["crelu", "sincos", "identity_abs", "identity_abs_l2", "sin2_pair"])
def test_channelwise_polyactivations(name: str) -> None:
    """``dim=1`` joins the blocks along the channels; the Graph knows the polyactivation as one, with its facts."""
    module = nn.Sequential(nn.Conv2d(1, 3, 3), lipbridge.activation_module(name, dim=1), nn.Conv2d(6, 2, 1)).double()
    x = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    graph = lipbridge.capture(module, (1, 5, 4))
    node = graph.nodes[2]
    assert isinstance(node, Elementwise)
    assert (node.activation.name, node.axis, node.shape) == (name, 0, (6, 3, 2))
    torch.testing.assert_close(graph(x), module(x))


def test_convolutional_networks_are_saved(tmp_path) -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same", padding_mode="circular"),
        nn.BatchNorm2d(4),
        lipbridge.activation_module("crelu", dim=1),
        nn.MaxPool2d(2),
        SinusoidalConv2d(8, 2, 3, padding=1),
        GroupSort(2),
        nn.AvgPool2d((2, 2)),
        nn.Flatten(),
        MaxMin(),
        nn.Linear(16, 3),
    )
    module(torch.randn(3, 1, 8, 8))
    module.eval()
    again = lipbridge.load(lipbridge.save(module, tmp_path))
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(x), module(x))
    assert {name: t.dtype for name, t in again.state_dict().items()} == {
        n: t.dtype for n, t in module.state_dict().items()
    }
    graph = lipbridge.capture(module, (1, 8, 8))
    file = graphs.save_graph(graph, tmp_path / "graph.safetensors")
    assert graphs.load_graph(file)(x.double()).equal(graph(x.double()))
