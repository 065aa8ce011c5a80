"""Neural fields and networks for differential equations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.support.architectures.entry import architecture


class Sine(nn.Module):
    def __init__(self, n: int, m: int, omega_0: float = 3.0) -> None:
        super().__init__()
        self.linear, self.omega_0 = nn.Linear(n, m), omega_0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * self.linear(x))


@architecture("SIREN", "Sitzmann et al. 2020, Implicit neural representations", (2,))
def siren() -> nn.Module:
    return nn.Sequential(Sine(2, 6), Sine(6, 6), nn.Linear(6, 1))


@architecture("PINN with tanh", "Raissi et al. 2019, Physics-informed neural networks", (2,))
class PINN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.5])
        self.layers = nn.ModuleList([nn.Linear(n, m) for n, m in ((2, 6), (6, 6), (6, 1))])

    def forward(self, x: Tensor) -> Tensor:
        x = 2.0 * (x - self.lower) / (self.upper - self.lower) - 1.0
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


@architecture("PINN with sine", "Jagtap et al. 2020, Adaptive activation functions", (2,), computed=True)
class AdaptivePINN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(2, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.a, self.n = nn.Parameter(torch.tensor(0.2)), 5

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(self.n * self.a * self.fc1(x))
        return self.fc3(torch.sin(self.n * self.a * self.fc2(x)))


class PositionalEncoding(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        self.freqs = [2.0**k for k in range(levels)]

    def forward(self, x: Tensor) -> Tensor:
        out = [x]
        for freq in self.freqs:
            out += [torch.sin(x * freq), torch.cos(x * freq)]
        return torch.cat(out, -1)


@architecture("NeRF", "Mildenhall et al. 2020, NeRF", (3,))
class NeRF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = PositionalEncoding(3)
        self.layers = nn.ModuleList([nn.Linear(21, 8), nn.Linear(8, 8), nn.Linear(29, 8)])
        self.rgb, self.alpha = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        points = self.embed(x)
        h = points
        for i, layer in enumerate(self.layers):
            h = torch.relu(layer(h))
            if i == 1:
                h = torch.cat([points, h], -1)
        return torch.cat([torch.sigmoid(self.rgb(h)), torch.relu(self.alpha(h))], -1)


@architecture(
    "Fourier features", "Tancik et al. 2020, Fourier features let networks learn high frequency functions", (2,)
)
class FourierFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("B", torch.randn(4, 2))
        self.net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (2.0 * math.pi * x) @ self.B.T
        return self.net(torch.cat([torch.sin(x), torch.cos(x)], dim=-1))


@architecture("DeepSDF", "Park et al. 2019, DeepSDF", (5,))
class DeepSDF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1, self.lin2 = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(8, 1)
        self.bn0 = nn.LayerNorm(6, eps=1e-2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn0(self.lin0(x)))
        h = torch.cat([torch.relu(self.lin1(h)), x], 1)
        return torch.tanh(self.lin2(h))


@architecture("IGR with softplus", "Gropp et al. 2020, Implicit geometric regularization", (3,))
class IGR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1, self.lin2 = nn.Linear(3, 5), nn.Linear(8, 6), nn.Linear(6, 1)
        self.act = nn.Softplus(beta=100)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.act(self.lin0(x)), x], -1) / math.sqrt(2)
        return self.lin2(self.act(self.lin1(h)))


@architecture("DeepONet", "Lu et al. 2019", (6,), refused="product of two functions of the input")
class DeepONet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = nn.Linear(4, 5), nn.Sequential(nn.Linear(2, 5), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.branch(x[:, :4]) * self.trunk(x[:, 4:]), dim=1, keepdim=True)


@architecture(
    "DeepONet at fixed sensors", "Lu et al. 2019, DeepONet; the trunk's points are given", (4,), computed=True
)
class FixedTrunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch, self.trunk = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5)), nn.Linear(2, 5)
        self.register_buffer("points", torch.rand(7, 2))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, u: Tensor) -> Tensor:
        return torch.einsum("bk,pk->bp", self.branch(u), torch.tanh(self.trunk(self.points))) + self.bias
