"""Which weights may be scaled in place: a module for each way in which a weight is more than one layer's parameter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from lipbridge.errors import UnsupportedOperation
from lipbridge.frontend.capture import read_module
from lipbridge.graph.nodes import Conv, Dense
from lipbridge.training.scalable_weights import ScalableWeight, _uses_once, scalable_weight


class Layers(nn.Module):
    """Two layers, and how the first one's weight is used."""

    def __init__(self, function: Callable[[Layers, Tensor], Tensor], *, bias: bool = True) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(4, 4, bias=bias), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.function(self, x)))


class Halved(nn.Module):
    """A parametrisation that takes every weight."""

    def forward(self, w: Tensor) -> Tensor:
        return 0.5 * w

    def right_inverse(self, w: Tensor) -> Tensor:
        return 2.0 * w


def plain() -> Layers:
    return Layers(lambda m, x: m.first(x))


def halved() -> Layers:
    module = plain()
    parametrize.register_parametrization(module.first, "weight", Halved())
    return module


def buffer() -> Layers:
    module = plain()
    weight = module.first.weight.detach()
    del module.first.weight
    module.first.register_buffer("weight", weight)
    return module


def sharing(start: int) -> Layers:
    """The weight is in memory from 0 to 16 of 32 numbers, a buffer from ``start`` on."""
    module = plain()
    memory = torch.randn(32)
    module.first.weight = nn.Parameter(memory[:16].view(4, 4))
    module.register_buffer("other", memory[start : start + 4])
    return module


def two_owners() -> Layers:
    module = Layers(lambda m, x: F.linear(x, m.first.weight + m.second.weight))
    module.second = nn.Linear(4, 4)
    for layer in (module.first, module.second):
        parametrize.register_parametrization(layer, "weight", Halved())
    return module


def two_plain_owners() -> Layers:
    module = Layers(lambda m, x: F.linear(x, m.first.weight + m.second.weight))
    module.second = nn.Linear(4, 4)
    return module


REFUSED = {
    "turned over": (lambda: Layers(lambda m, x: x @ m.first.weight, bias=False), "computed on the way"),
    "twice as large": (
        lambda: Layers(lambda m, x: F.linear(x, 2.0 * m.first.weight), bias=False),
        "computed on the way",
    ),
    "a buffer": (buffer, "computed on the way"),
    "two owners": (two_owners, "computed on the way"),
    "two plain owners": (two_plain_owners, "computed on the way"),
    "twice": (lambda: Layers(lambda m, x: m.first(torch.relu(m.first(x)))), "used twice"),
    "shared memory": (lambda: sharing(12), "used twice"),
    "another bias": (lambda: Layers(lambda m, x: F.linear(x, m.first.weight, m.last.bias)), "bias is not"),
    "no bias": (lambda: Layers(lambda m, x: F.linear(x, m.first.weight)), "bias is not"),
}


def of_first(module: nn.Module) -> ScalableWeight | str:
    reading = read_module(module.eval(), (4,))
    node = next(node for node in reading.graph.nodes if isinstance(node, Dense | Conv))
    return scalable_weight(module, reading, node)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_more_than_the_parameter_of_one_use_is_not_scaled(kind: str) -> None:
    make, words = REFUSED[kind]
    found = of_first(make())
    assert isinstance(found, str)
    assert words in found


@pytest.mark.parametrize(("make", "parametrised"), [(plain, False), (halved, True), (lambda: sharing(16), False)])
def test_the_parameter_of_one_use_is(make: Callable[[], Layers], parametrised: bool) -> None:
    module = make()
    found = of_first(module)
    assert isinstance(found, ScalableWeight)
    assert (found.owner, found.name, found.parametrised) == (module.first, "first", parametrised)
    weight, bias = torch.randn(4, 4), torch.randn(4)
    found.write(weight, bias)
    torch.testing.assert_close(module.first.weight, weight)
    torch.testing.assert_close(module.first.bias, bias)


def test_a_weight_that_is_not_given_back_is_an_error() -> None:
    owner = parametrizations.spectral_norm(nn.Linear(4, 4)).eval()
    with pytest.raises(UnsupportedOperation, match="does not give it back"):
        ScalableWeight(owner, "owner", True).write(3.0 * owner.weight, None)


def test_reading_a_weight_in_training_mode_changes_no_buffer() -> None:
    """The power iteration of spectral_norm goes a step whenever it is read in training mode."""
    owner = parametrizations.spectral_norm(nn.Linear(4, 4)).train()
    before = {name: tensor.clone() for name, tensor in owner.state_dict().items()}
    weight = ScalableWeight(owner, "owner", True).weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in owner.state_dict().items())
    assert all(layer.training for layer in owner.modules())
    assert weight.dtype == torch.float64


def test_one_operation_may_read_a_weight_twice() -> None:
    graph = fx.Graph()
    x, w, b = (graph.placeholder(name) for name in "xwb")
    assert _uses_once(graph.call_function(F.linear, (x, w, b)), w)
    assert _uses_once(graph.call_function(F.linear, (x, w), {"bias": b}), b)
    assert not _uses_once(graph.call_function(F.linear, (x, w, w)), w)
    assert not _uses_once(graph.call_function(F.linear, (x, w), {"bias": w}), w)
