"""Families of networks for what walks every kind of problem."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

import lipbridge


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        return self.last(h + torch.relu(self.inner(h)))


class Number(nn.Module):
    """One number an input, without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).squeeze(-1)


def _dense(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), layers[0], nn.Linear(6, 5), *layers[1:], nn.Linear(5, 3))


#: A module by family, and the shape of one input.
FAMILIES: dict[str, tuple[object, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "relu": (lambda: _dense(nn.ReLU(), nn.ReLU()), (4,)),
    "tanh": (lambda: _dense(nn.Tanh(), nn.Tanh()), (4,)),
    "gelu": (lambda: _dense(nn.GELU(), nn.GELU()), (4,)),
    "abs": (lambda: lipbridge.mlp([4, 6, 3], "abs"), (4,)),
    "crelu": (lambda: lipbridge.mlp([4, 6, 3], "crelu"), (4,)),
    "sincos": (lambda: lipbridge.mlp([4, 6, 3], "sincos"), (4,)),
    "prelu": (lambda: _dense(nn.PReLU(6), nn.PReLU(5)), (4,)),
    "constant": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "groupsort": (lambda: nn.Sequential(nn.Linear(4, 6), lipbridge.GroupSort(2), nn.Linear(6, 3)), (4,)),
    "residual": (Residual, (4,)),
    "number": (Number, (4,)),
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.Softmax(-1)), (4,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)), (4,)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)), (4,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)),
        (1, 5, 5),
    ),
    "max pooling": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
        (1, 5, 5),
    ),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
        ),
        (1, 4, 4),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
        (1, 4),
    ),
}  # fmt: skip


@cache
def graph_of(family: str) -> lipbridge.Graph:
    make, shape = FAMILIES[family]
    torch.manual_seed(0)
    module = make().eval()  # type: ignore[operator]
    if family == "constant":
        with torch.no_grad():
            module[2].weight.zero_()
    return lipbridge.capture(module, shape)
