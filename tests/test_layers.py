"""The builder and the sinusoidal layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipbridge
from lipbridge.errors import InvalidArgument, UnknownName


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
