"""Families of networks and matrices that tests walk: random, deep, ill-conditioned, dead, zero, huge, tiny."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import lipbridge

FLAVOURS = ("random", "rank_one", "zero_layer", "dead", "ill_conditioned", "huge", "tiny", "orthogonal", "integers")


def matrix(m: int, n: int, flavour: str, generator: torch.Generator) -> Tensor:
    """A float64 ``(m, n)`` matrix of a flavour."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W = normal(m, n)
    if flavour == "rank_one":
        return normal(m, 1) @ normal(1, n)
    if flavour == "zero_layer":
        return torch.zeros(m, n, dtype=torch.float64)
    if flavour == "ill_conditioned":
        return W * torch.logspace(0, -12, n, dtype=torch.float64)
    if flavour == "huge":
        return W * 1e60
    if flavour == "tiny":
        return W * 1e-60
    if flavour == "orthogonal":
        return torch.linalg.qr(normal(max(m, n), max(m, n)))[0][:m, :n].contiguous()
    if flavour == "integers":
        return W.mul(2).round()
    return W / math.sqrt(n)


def network(
    seed: int, depth: int, activations: tuple[str, ...], flavour: str = "random", *, bias: bool = True, width: int = 6
) -> nn.Sequential:
    """A float64 chain of ``depth`` dense layers with the given activations in turn; one layer has the flavour."""
    generator = torch.Generator().manual_seed(seed)
    widths = [int(torch.randint(1, width + 1, (1,), generator=generator)) for _ in range(depth + 1)]
    special = int(torch.randint(0, depth, (1,), generator=generator))
    layers: list[nn.Module] = []
    factor = 1
    for index in range(depth):
        n, m = widths[index] * factor, widths[index + 1]
        layer = nn.Linear(n, m, bias=bias, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(matrix(m, n, flavour if index == special else "random", generator))
            if bias:
                layer.bias.copy_(torch.randn(m, generator=generator, dtype=torch.float64))
                if flavour == "dead" and index == special:
                    layer.bias.fill_(-1e3)
        layers.append(layer)
        if index < depth - 1:
            name = activations[index % len(activations)]
            layers.append(lipbridge.activation_module(name))
            factor = lipbridge.activation(name).width
    return nn.Sequential(*layers)
