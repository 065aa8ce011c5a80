"""Layers that random modules are built from and that torch has not: weights computed in forward, and the like."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune


class EqualLinear(nn.Linear):
    """Equalised learning rate: the weight is scaled in forward."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * 0.37, self.bias)


class SquaredLinear(nn.Linear):
    """A weight that is squared in forward."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight**2, self.bias)


class StandardConv2d(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(input, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Lora(nn.Module):
    """A dense layer with a product of low rank that is merged in eval mode."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.base, self.merged = nn.Linear(n, m), False
        self.A, self.B = nn.Parameter(torch.randn(1, n)), nn.Parameter(torch.randn(m, 1))

    def train(self, mode: bool = True) -> Lora:
        super().train(mode)
        if mode == self.merged:
            self.base.weight.data += (-1 if mode else 1) * (self.B @ self.A)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) if self.merged else self.base(x) + x @ self.A.T @ self.B.T


class ReZero(nn.Module):
    """x + alpha * tanh(W x) with a learnable scalar."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.f, self.alpha = nn.Linear(n, n), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * torch.tanh(self.f(x))


class NoGrad(nn.Module):
    """A frozen layer under no_grad in forward."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.body = nn.Linear(n, m)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.relu(self.body(x))
        return 2.0 * x


class Autocast(nn.Module):
    """A layer under autocast to bfloat16."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.body = nn.Linear(n, m)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x).to(x.dtype)


class Tied(nn.Module):
    """One weight, used twice: as it is and transposed."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(n, m, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.encoder(x)), self.encoder.weight.t())


class Mixed(nn.Module):
    """A learnable mix of the input and a layer, weights read from one vector."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.f, self.w = nn.Linear(n, n), nn.Parameter(torch.tensor([0.4, -1.2]))

    def forward(self, x: Tensor) -> Tensor:
        return self.w[0] * torch.relu(self.f(x)) + self.w[1] * x


class Temperature(nn.Module):
    """A layer whose output is scaled by a learnable temperature."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.f, self.scale = nn.Linear(n, m), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.exp() * self.f(x)


class Normalised(nn.Module):
    """Input mean and deviation as buffers, before a layer."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(n))
        self.register_buffer("std", torch.rand(n) + 0.2)
        self.f = nn.Linear(n, m)

    def forward(self, x: Tensor) -> Tensor:
        return self.f((x - self.mean) / self.std)


class _Skew(nn.Module):
    def forward(self, W: Tensor) -> Tensor:
        return W.triu(1) - W.triu(1).T


def skew(n: int) -> nn.Module:
    """A dense layer whose weight is parametrised as skew-symmetric."""
    layer = nn.Linear(n, n)
    parametrize.register_parametrization(layer, "weight", _Skew())
    return layer


def parametrised(layer: nn.Module, kind: str) -> nn.Module:
    """``layer`` with a weight that is computed: by torch's parametrizations, its old hooks, or pruning."""
    if kind == "weight_norm":
        return parametrizations.weight_norm(layer)
    if kind == "spectral_norm":
        return parametrizations.spectral_norm(layer)
    if kind == "orthogonal":
        return parametrizations.orthogonal(layer)
    if kind == "old weight_norm":
        return nn.utils.weight_norm(layer)
    if kind == "old spectral_norm":
        return nn.utils.spectral_norm(layer)
    return prune.random_unstructured(layer, "weight", 0.4)


def settled(layer: nn.Module) -> nn.Module:
    """A normalisation layer with statistics as after some training."""
    for name, buffer in layer.named_buffers():
        if name.endswith("mean"):
            buffer.copy_(torch.randn(buffer.shape))
        elif name.endswith("var"):
            buffer.copy_(torch.rand(buffer.shape) + 0.1)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape))
    return layer
