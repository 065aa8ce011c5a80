"""Networks that are built for a known Lipschitz constant, for convexity, or for monotonicity."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from tests.support.architectures.entry import architecture


class GroupSort2(nn.Module):
    """The default activation of deel-torchlip."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.view(x.shape[0], -1, 2)
        low, high = y.min(2, keepdim=True)[0], y.max(2, keepdim=True)[0]
        return torch.cat([low, high], 2).view(x.shape)


class Bjorck(nn.Module):
    """Björck and Bowie's iteration towards an orthogonal matrix."""

    def forward(self, W: Tensor) -> Tensor:
        flat = W.reshape(W.shape[0], -1)
        flat = flat / torch.linalg.matrix_norm(flat, 2)
        for _ in range(6):
            flat = 1.5 * flat - 0.5 * flat @ flat.T @ flat
        return flat.reshape(W.shape)


def bjorck(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Bjorck())
    return layer


TORCHLIP = "Serrurier et al. 2021, Achieving robustness in classification using optimal transport"


@architecture("deel-torchlip: two moons", TORCHLIP, (2,), computed=True)
def two_moons() -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in ((2, 8), (8, 6), (6, 4)):
        layers += [bjorck(nn.Linear(n, m)), GroupSort2()]
    return nn.Sequential(*layers, bjorck(nn.Linear(4, 1)))


@architecture("deel-torchlip: MNIST", TORCHLIP, (1, 8, 8), computed=True)
def torchlip_mnist() -> nn.Module:
    features = (bjorck(nn.Conv2d(1, 4, 3, padding=1)), GroupSort2(), nn.AvgPool2d(2))
    return nn.Sequential(*features, nn.Flatten(), bjorck(nn.Linear(64, 6)), GroupSort2(), bjorck(nn.Linear(6, 10)))


@architecture("deel-torchlip: full sort", TORCHLIP, (4,), computed=True)
class FullSort(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = bjorck(nn.Linear(4, 6)), bjorck(nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(torch.sort(self.fc1(x), dim=1)[0])


@architecture("deel-torchlip: L2 norm pooling", TORCHLIP, (1, 6, 6), refused="square has no global Lipschitz constant")
def l2_pool() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.LPPool2d(2, 2), nn.Flatten())


class MaxMin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(x.size(1) // 2, 1)
        return torch.cat([torch.max(a, b), torch.min(a, b)], dim=1)


@architecture("MaxMin network", "Anil et al. 2019, Sorting out Lipschitz function approximation", (4,), computed=True)
def maxmin() -> nn.Module:
    return nn.Sequential(orthogonal(nn.Linear(4, 6)), MaxMin(), orthogonal(nn.Linear(6, 6)), MaxMin(), nn.Linear(6, 2))


class Cayley(nn.Module):
    """Trockman and Kolter's (I - A)(I + A)^-1 of a skew-symmetric A."""

    def forward(self, W: Tensor) -> Tensor:
        A, identity = W - W.T, torch.eye(len(W), dtype=W.dtype)
        return torch.linalg.solve(identity + A, identity - A)


@architecture("Cayley layers", "Trockman and Kolter 2021, Orthogonalizing convolutional layers", (6,), computed=True)
def cayley() -> nn.Module:
    layers = [nn.Linear(6, 6) for _ in range(2)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Cayley())
    return nn.Sequential(layers[0], MaxMin(), layers[1], nn.ReLU(), spectral_norm(nn.Linear(6, 3)))


@architecture("Cayley convolution", "Trockman and Kolter 2021, section 3", (2, 6, 6), refused="Fourier", computed=True)
class CayleyConv(nn.Module):
    """The convolution in the frequency domain, frequency by frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        W = torch.fft.rfft2(self.weight).permute(2, 3, 0, 1)
        A, identity = W - W.conj().transpose(2, 3), torch.eye(2, dtype=W.dtype)
        Q = torch.linalg.solve(identity + A, identity - A)
        xf = torch.fft.rfft2(x).permute(2, 3, 1, 0)
        return torch.fft.irfft2((Q @ xf).permute(3, 2, 0, 1))


class Householder(nn.Module):
    """Activation of pairs of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.rand(channels // 2) * math.pi)

    def forward(self, z: Tensor) -> Tensor:
        theta = self.theta
        x, y = z.split(z.shape[1] // 2, 1)
        selector = x * torch.sin(theta / 2) - y * torch.cos(theta / 2)
        a = x * torch.cos(theta) + y * torch.sin(theta)
        b = x * torch.sin(theta) - y * torch.cos(theta)
        return torch.cat([torch.where(selector <= 0, x, a), torch.where(selector <= 0, y, b)], 1)


@architecture(
    "Householder activation",
    "Singla et al. 2021, Improved deterministic l2 robustness",
    (4,),
    refused="comparison jumps|no lines of what is compared",
)
def householder() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), Householder(6), nn.Linear(6, 2))


@architecture("SOC", "Singla and Feizi 2021, Skew orthogonal convolutions", (2, 6, 6), computed=True)
class SOC(nn.Module):
    """The exponential of a skew-symmetric convolution by its Taylor series."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_filter = nn.Parameter(0.1 * torch.randn(2, 2, 3, 3))
        self.bias = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        flipped = self.conv_filter.transpose(0, 1).flip([2, 3])
        W = self.conv_filter - flipped
        z = curr = x
        for i in range(1, 4):
            curr = F.conv2d(curr, W, padding=(1, 1)) / float(i)
            z = z + curr
        return z + self.bias.view(1, -1, 1, 1)


class AOLDense(nn.Linear):
    """Almost orthogonal layer: columns are rescaled by the row sums of |W'W|."""

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.abs(self.weight.T @ self.weight).sum(1).rsqrt()
        return F.linear(x, self.weight * scale, self.bias)


@architecture("AOL", "Prach and Lampert 2022, Almost-orthogonal layers", (5,), computed=True)
def aol() -> nn.Module:
    return nn.Sequential(AOLDense(5, 6), MaxMin(), AOLDense(6, 3))


class ConvexPotential(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, n) / 2), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.linear(x, self.weight, self.bias))
        norm = torch.linalg.matrix_norm(self.weight.detach(), 2)
        return x - 2.0 * F.linear(h, self.weight.t()) / norm**2


@architecture("Convex potential layers", "Meunier et al. 2022, A dynamical system perspective", (4,), computed=True)
def cpl() -> nn.Module:
    return nn.Sequential(ConvexPotential(4), ConvexPotential(4), nn.Linear(4, 3))


class SLL(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight, self.bias, self.q = (
            nn.Parameter(torch.randn(m, n)),
            nn.Parameter(torch.randn(m)),
            nn.Parameter(torch.rand(m)),
        )

    def forward(self, x: Tensor) -> Tensor:
        q = torch.exp(self.q)
        T = 2.0 / torch.abs(q[None, :] * (self.weight @ self.weight.T) / q[:, None]).sum(1)
        return x - F.linear(T * F.relu(F.linear(x, self.weight, self.bias)), self.weight.t())


@architecture("SDP-based Lipschitz layers", "Araujo et al. 2023, A unified algebraic perspective", (4,), computed=True)
def sll() -> nn.Module:
    return nn.Sequential(SLL(4, 6), SLL(4, 5))


class Sandwich(nn.Module):
    """h -> sqrt2 A' Psi relu(sqrt2 Psi^-1 B h + b), with (A, B) from a Cayley transform."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.X, self.Y = nn.Parameter(torch.randn(m, m)), nn.Parameter(torch.randn(n, m))
        self.psi, self.b = nn.Parameter(0.2 * torch.randn(m)), nn.Parameter(torch.randn(m))

    def forward(self, x: Tensor) -> Tensor:
        identity = torch.eye(len(self.X), dtype=self.X.dtype)
        Z = self.X - self.X.T + self.Y.T @ self.Y
        inverse = torch.inverse(identity + Z)
        A_T, B_T = inverse @ (identity - Z), -2 * self.Y @ inverse
        x = math.sqrt(2.0) * torch.exp(-self.psi) * (x @ B_T) + self.b
        return math.sqrt(2.0) * (F.relu(x) * torch.exp(self.psi)) @ A_T.T


@architecture("Sandwich layers", "Wang and Manchester 2023, Direct parameterization", (4,), computed=True)
def sandwich() -> nn.Module:
    return nn.Sequential(Sandwich(4, 6), Sandwich(6, 3))


@architecture("Circular convolutions", "Sedghi et al. 2018, The singular values of convolutional layers", (2, 6, 6))
def circular() -> nn.Module:
    first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
    return nn.Sequential(
        first, MaxMin(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(144, 3)
    )


@architecture(
    "Invertible downsampling", "Jacobsen et al. 2018, i-RevNet; Trockman and Kolter 2021", (2, 8, 8), computed=True
)
def downsampling() -> nn.Module:
    body = (nn.PixelUnshuffle(2), spectral_norm(nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular")), MaxMin())
    return nn.Sequential(*body, nn.AvgPool2d(4), nn.Flatten(), weight_norm(nn.Linear(6, 4)))


@architecture("ICNN", "Amos et al. 2017, Input convex neural networks", (3,), computed=True)
class ICNN(nn.Module):
    """Weights on the way are softplus of raw ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.skip1, self.skip2 = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(3, 1)
        self.raw1, self.raw2 = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(1, 6))

    def forward(self, x: Tensor) -> Tensor:
        z = F.softplus(self.first(x))
        z = F.softplus(F.linear(z, F.softplus(self.raw1)) + self.skip1(x))
        return F.linear(z, F.softplus(self.raw2)) + self.skip2(x)


@architecture(
    "Monotone network", "Sill 1997; Kitouni et al. 2021, Robust and provably monotonic networks", (3,), computed=True
)
class Monotone(nn.Module):
    """A 1-Lipschitz network in l_inf plus the sum of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        W = self.fc1.weight / torch.maximum(self.fc1.weight.abs().sum(0, keepdim=True), torch.tensor(1.0))
        y = self.fc2(GroupSort2()(F.linear(x, W, self.fc1.bias)))
        return y + 1.0 * x.sum(dim=-1, keepdim=True)


@architecture("Min-max monotone network", "Sill 1997, Monotonic networks", (3,), computed=True)
class MinMax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, torch.exp(self.weight), self.bias).view(-1, 2, 3)
        return torch.min(torch.max(y, dim=2)[0], dim=1)[0]


class LipschitzLinear(nn.Linear):
    """Rows are scaled down to the learned bound softplus(c)."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.c = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.clamp(F.softplus(self.c) / self.weight.abs().sum(1), max=1.0)
        return F.linear(x, self.weight * scale[:, None], self.bias)


@architecture(
    "LipMLP", "Liu et al. 2022, Learning smooth neural functions via Lipschitz regularization", (3,), computed=True
)
def lipmlp() -> nn.Module:
    return nn.Sequential(LipschitzLinear(3, 6), nn.Tanh(), LipschitzLinear(6, 6), nn.Tanh(), LipschitzLinear(6, 1))
