"""The comparison behind ``rescale``: two modules, and their Graphs, are one function only if all rows agree."""

from __future__ import annotations

import copy

import torch
from torch import nn

from lipbridge.frontend.capture import capture
from lipbridge.training.same_function import same_function


def network(seed: int = 0, depth: int = 3, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    hidden = [layer for _ in range(depth - 2) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), *hidden, nn.Linear(width, 2))


def compared(one: nn.Module, two: nn.Module, *graphs: nn.Module) -> bool:
    """The modules, and the Graphs of them or of others."""
    given = [copy.deepcopy(module).eval().double() for module in graphs or (one, two)]
    return same_function([one, two], [capture(module, (4,)) for module in given])


def changed(module: nn.Sequential, factor: float) -> nn.Sequential:
    other = copy.deepcopy(module)
    with torch.no_grad():
        other[-1].weight.mul_(factor)
    return other


def test_modules_and_graphs_are_compared() -> None:
    module = network().double()
    other = changed(module, 1.0 + 1e-6)
    assert compared(module, copy.deepcopy(module))
    assert not compared(module, other)
    assert not compared(module, other, module, module)
    assert not compared(module, module, module, other)


def test_the_room_is_that_of_the_dtype() -> None:
    module = network()
    other = copy.deepcopy(module)
    with torch.no_grad():
        other[0].weight.mul_(3.0), other[0].bias.mul_(3.0), other[2].weight.div_(3.0)
    assert compared(module, other)
    assert not compared(module, changed(module, 1.001))


def test_the_room_of_a_deep_float32_network_is_not_its_running_error() -> None:
    module = network(depth=14, width=48)
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2.0)
    assert not compared(module, changed(module, 1.01))


class Written(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return self.function(x)


def test_every_row_counts() -> None:
    line, clipped = Written(lambda x: 1.0 * x), Written(lambda x: x.clamp(-1.0, 1.0))
    assert not compared(line, clipped)
    assert not compared(line, clipped, line, line)


def test_what_overflows_alone_is_another_function() -> None:
    line, huge = Written(lambda x: 1.0 * x), Written(lambda x: (x * 1e200) * 1e200)
    assert not compared(huge, line, line, line)


def test_shapes_that_broadcast_are_not_one() -> None:
    many, one = Written(lambda x: 0.0 * x), Written(lambda x: 0.0 * x[:, :1])
    assert not compared(many, one)
    assert not compared(many, one, many, many)


def test_the_modules_are_left_as_they_were() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    buffers = [buffer.clone() for buffer in module.buffers()]
    module.train()
    assert compared(module, copy.deepcopy(module))
    assert module.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, module.buffers(), strict=True))
