"""Small convolutional networks for one multiplier a channel."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn

import lipbridge

FLAVOURS = ("random", "random", "channels", "tiny", "huge", "dead", "zero")


def conv_network(seed: int, *, activations: tuple[str, ...] = ("relu", "abs", "crelu", "sincos")) -> nn.Sequential:
    """A random chain on (2, 6, 6) images: convolutions, pooling, sorting, flattening, dense layers, nasty weights."""
    chosen = random.Random(seed)
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels_, size = 2, 6
    for _ in range(chosen.randint(1, 3)):
        groups = chosen.choice([1, 1, math.gcd(channels_, 2)])
        out = 2 * chosen.randint(1, 3)
        kernel, stride = chosen.choice([1, 3]), chosen.choice([1, 1, 2]) if size > 3 else 1
        mode = chosen.choice(["zeros", "circular", "reflect"]) if size > 2 else "zeros"
        layers.append(
            nn.Conv2d(
                channels_,
                out,
                kernel,
                stride,
                kernel // 2,
                groups=groups,
                padding_mode=mode,
                bias=chosen.random() < 0.5,
            )
        )
        channels_, size = out, -(-size // stride)
        if chosen.random() < 0.4:
            norm = nn.BatchNorm2d(out)
            with torch.no_grad():
                norm.weight.copy_(torch.randn(out))
                norm.running_var.copy_(torch.rand(out) + 0.1)
            layers.append(norm)
        name = chosen.choice(activations)
        width = lipbridge.activation(name).width
        layers.append(lipbridge.activations.registry.activation_module(name, **({"dim": 1} if width > 1 else {})))
        channels_ *= width
        more = chosen.choice(["none", "max", "overlap", "average", "sort"])
        if more == "max" and size >= 2:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        elif more == "overlap" and size >= 3:
            layers.append(nn.MaxPool2d(3, 1, 1))
        elif more == "average" and size >= 2:
            layers.append(nn.AvgPool2d(2))
            size //= 2
        elif more == "sort":
            layers.append(lipbridge.MaxMin())
    layers.append(nn.Flatten())
    n = channels_ * size * size
    if chosen.random() < 0.6:
        layers += [nn.Linear(n, 5), nn.ReLU()]
        n = 5
    layers.append(nn.Linear(n, 3))
    net = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                flavour = chosen.choice(FLAVOURS)
                if flavour == "channels":
                    rows = torch.logspace(-3, 3, layer.weight.shape[0], dtype=torch.float64)
                    layer.weight *= rows[torch.randperm(len(rows))].reshape(-1, *[1] * (layer.weight.ndim - 1))
                elif flavour == "dead":
                    layer.weight[0] = 0.0
                layer.weight *= {"tiny": 1e-60, "huge": 1e60, "zero": 0.0}.get(flavour, 1.0)
    return net


def steepest(net: nn.Module, points: int = 6) -> float:
    """The largest Jacobian norm at some random points: a lower bound."""
    generator = torch.Generator().manual_seed(0)
    found = 0.0
    for scale in (1e-3, 1.0, 30.0):
        for _ in range(points // 3):
            x = scale * torch.randn(1, 2, 6, 6, generator=generator, dtype=torch.float64)
            J = torch.autograd.functional.jacobian(lambda t: net(t)[0], x).reshape(3, -1)
            size = float(J.abs().max())
            if size > 0.0 and math.isfinite(size):
                found = max(found, size * float(torch.linalg.matrix_norm(J / size, 2)))
    return found


def feasible_logs(run, seed: int) -> list[Tensor]:
    """Multipliers that are large, a little different from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    norms = [float(torch.linalg.matrix_norm(b.weight, 2).max()) for b in run.blocks]
    logs, g = [], 1.0
    for index in range(len(run.increments) - 1, -1, -1):
        rule = run.increments[index]
        g *= 8.0 * norms[index + 1] ** 2
        noise = 0.2 * torch.randn(rule.constraints, run.units[index], generator=generator, dtype=torch.float64)
        logs.append(math.log(g) + noise)
    return logs[::-1]
