"""What a captured module is asked: agreement with the module, the kinds of its nodes."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import lipbridge
from lipbridge.graph.graph import Graph


def agrees(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Capture in float32, and compare with the module in float64 on random inputs."""
    module = module.eval()
    graph = lipbridge.capture(module, shape)
    x = torch.randn(3, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(x)
    torch.testing.assert_close(graph(x), expected, rtol=1e-12, atol=1e-12)
    return graph


def kinds(graph: Graph) -> list[str]:
    return [type(node).__name__ for node in graph.nodes[1:]]


class Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def same(module: nn.Module, shape: tuple[int, ...]) -> Graph:
    """Copies are exact, so the values are equal."""
    graph = lipbridge.capture(module, shape)
    x = torch.randn(4, *shape, dtype=torch.float64)
    assert torch.equal(graph(x), module.double()(x))
    return graph


class Llama(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(n) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + 1e-6))
