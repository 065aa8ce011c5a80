"""Networks of the verification competition (VNN-COMP) and of the papers that its benchmarks come from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.architectures.entry import architecture


@architecture("ACAS Xu", "Julian et al. 2016; Katz et al. 2017, Reluplex", (5,))
class AcasXu(nn.Module):
    """Inputs less their mean, divided by their range; outputs scaled back."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("means", torch.tensor([19791.091, 0.0, 0.0, 650.0, 600.0]))
        self.register_buffer("ranges", torch.tensor([60261.0, 6.28318530718, 6.28318530718, 1100.0, 1200.0]))
        self.layers = nn.ModuleList([nn.Linear(n, m) for n, m in ((5, 8), (8, 8), (8, 8), (8, 5))])

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.means) / self.ranges
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x) * 373.94992 + 7.518884


class NormalizedInput(nn.Module):
    """As in robustness libraries: (x - mean) / std with buffers of shape (1, C, 1, 1)."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def cifar_normalisation() -> nn.Module:
    return NormalizedInput([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])


@architecture("mnist_fc", "VNN-COMP 2021, 256xN ReLU networks for MNIST", (1, 7, 7))
class MnistFC(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(49, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.1307) / 0.3081
        x = torch.flatten(x, start_dim=1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


@architecture("ERAN tanh 6x100", "Singh et al. 2019, An abstract domain for certifying neural networks", (12,))
def eran_tanh() -> nn.Module:
    return nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(12, 12), nn.Tanh())), nn.Linear(12, 5))


@architecture("ERAN sigmoid", "Singh et al. 2018, Fast and effective robustness certification", (12,))
def eran_sigmoid() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 8), nn.Sigmoid(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 5))


@architecture("ConvSmall", "Mirman et al. 2018, Differentiable abstract interpretation", (1, 14, 14))
def conv_small() -> nn.Module:
    convolutions = (nn.Conv2d(1, 4, 4, 2), nn.ReLU(), nn.Conv2d(4, 6, 4, 2), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*convolutions, nn.Linear(6 * 2 * 2, 10), nn.ReLU(), nn.Linear(10, 10))


@architecture(
    "ConvBig with normalised input", "Mirman et al. 2018, Differentiable abstract interpretation", (3, 12, 12)
)
def conv_big() -> nn.Module:
    convolutions = (nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.Conv2d(4, 4, 4, 2, 1), nn.ReLU())
    head = (nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 10))
    return nn.Sequential(cifar_normalisation(), *convolutions, *head)


@architecture("oval21 base", "Bunel et al. 2020, Branch and bound for piecewise linear verification", (3, 8, 8))
def oval() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 10)),
    )


class CifarBlock(nn.Module):
    """Of resnet2b and resnet4b (with and without batch normalisation)."""

    def __init__(self, n: int, m: int, stride: int, bn: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n, m, 3, stride=stride, padding=1, bias=not bn)
        self.conv2 = nn.Conv2d(m, m, 3, padding=1, bias=not bn)
        self.bn1, self.bn2 = (nn.BatchNorm2d(m) if bn else nn.Identity() for _ in range(2))
        self.shortcut = nn.Sequential()
        if stride != 1 or n != m:
            self.shortcut = nn.Sequential(nn.Conv2d(n, m, 1, stride=stride), nn.BatchNorm2d(m) if bn else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


def cifar_resnet(bn: bool) -> nn.Module:
    blocks = (nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), CifarBlock(4, 4, 2, bn), CifarBlock(4, 4, 1, bn))
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 10))


@architecture("resnet2b of CIFAR", "VNN-COMP 2021, cifar10_resnet; Wang et al. 2021, beta-CROWN", (3, 12, 12))
def resnet2b() -> nn.Module:
    return cifar_resnet(False)


@architecture("resnet4b of CIFAR", "VNN-COMP 2021, cifar10_resnet, with batch normalisation", (3, 12, 12))
def resnet4b() -> nn.Module:
    return nn.Sequential(cifar_normalisation(), cifar_resnet(True))


@architecture("vggnet16", "VNN-COMP 2022, vggnet16 of Simonyan and Zisserman", (3, 16, 16))
def vggnet() -> nn.Module:
    convolutions: list[nn.Module] = []
    for n, m in ((3, 4), (4, 4)):
        convolutions += [
            nn.Conv2d(n, m, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(m, m, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2, 2),
        ]
    head = (nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 10))
    return nn.Sequential(*convolutions, *head)


@architecture("marabou_cifar10", "VNN-COMP 2021, Marabou's small, medium and large networks", (8, 8, 3))
class MarabouCifar(nn.Module):
    """Channels last, as from Keras."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 4, stride=2), nn.Conv2d(4, 4, 2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(x.permute(0, 2, 3, 1).reshape(-1, 16))


@architecture("nn4sys, learned index", "VNN-COMP 2021, nn4sys; Kraska et al. 2018", (1,))
def nn4sys() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


@architecture("TLL verification benchmark", "Ferlez and Shoukry 2020, AReN; two-level lattices", (2,))
class TwoLevelLattice(nn.Module):
    """The maximum over selections of the minimum of local linear functions."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Linear(2, 6)
        self.register_buffer("selections", torch.tensor([[0, 1, 2], [2, 3, 4], [1, 4, 5], [0, 3, 5]]))

    def forward(self, x: Tensor) -> Tensor:
        groups = self.local(x)[:, self.selections]
        return groups.min(dim=2).values.max(dim=1, keepdim=True).values


@architecture("reach_prob_density", "VNN-COMP 2022; Meng et al. 2022, Learning density distribution of systems", (3,))
def density() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@architecture("collins_rul_cnn", "Kirov and Rollini 2023, Remaining useful life", (1, 10, 6))
def remaining_life() -> nn.Module:
    layers: list[nn.Module] = []
    for n, m in ((1, 3), (3, 4), (4, 3)):
        layers += [nn.Conv2d(n, m, (5, 1), padding=(2, 0)), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(180, 6), nn.ReLU(), nn.Linear(6, 1))


class Down(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


@architecture("carvana U-Net", "VNN-COMP 2022, carvana_unet; Ronneberger et al. 2015", (3, 8, 8))
class CarvanaUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.up = Down(3, 4), Down(4, 6), nn.Upsample(scale_factor=2, mode="nearest")
        self.mix, self.out = Down(10, 4), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y1 = self.down1(x)
        y2 = self.up(self.down2(F.avg_pool2d(y1, 2)))
        return self.out(self.mix(torch.cat([y1, y2], dim=1)))


@architecture("cGAN", "VNN-COMP 2023, cgan: a generator and a discriminator, one after the other", (5,))
class CGAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn0 = nn.Linear(5, 4 * 2 * 2), nn.BatchNorm2d(4)
        self.deconv1, self.bn1 = nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.BatchNorm2d(3)
        self.deconv2 = nn.ConvTranspose2d(3, 1, 4, 2, 1)
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 4, 2, 1), nn.Conv2d(3, 4, 4, 2, 1)
        self.score, self.label = nn.Linear(16, 1), nn.Linear(16, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.fc(z).view(-1, 4, 2, 2)))
        x = torch.tanh(self.deconv2(F.relu(self.bn1(self.deconv1(x)))))
        x = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2).flatten(1)
        return torch.cat((torch.sigmoid(self.score(x)), self.label(x)), -1)


@architecture("dist_shift", "Wu et al. 2022, Toward certified robustness against real-world distribution shifts", (4,))
class DistShift(nn.Module):
    """A decoder before a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 16), nn.Sigmoid())
        self.classifier = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, z: Tensor) -> Tensor:
        return self.classifier(self.decoder(z))


@architecture("rl_benchmarks, cartpole", "Ravaioli et al. 2022; VNN-COMP 2022, rl_benchmarks", (4,))
def cartpole() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


@architecture("safeNLP", "Casadio et al. 2023, classifiers of sentence embeddings", (30,))
def safe_nlp() -> nn.Module:
    return nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 2))


@architecture("metaroom", "Hu et al. 2022, Robustness certification of visual perception models", (3, 10, 14))
def metaroom() -> nn.Module:
    convolutions = (nn.Conv2d(3, 4, 3, stride=(2, 3), padding=(1, 0)), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU())
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(8, 5))


@architecture("ml4acopf", "VNN-COMP 2023, ml4acopf: power flow", (6,), refused="product of two functions of the input")
class PowerFlow(nn.Module):
    """v_i v_j cos(theta_i - theta_j) at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        v, theta = self.net(x).split(2, dim=1)
        return v[:, 0:1] * v[:, 1:2] * torch.cos(theta[:, 0:1] - theta[:, 1:2])


class Binary(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.sign(x))


@architecture("Traffic signs, binary network", "Guo et al. 2023; VNN-COMP 2023", (1, 6, 6), refused="It jumps")
def traffic_signs() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Binary(2, 3, 3), nn.Flatten(), nn.Linear(12, 3))


@architecture("Lyapunov network", "VNN-COMP 2024, lsnc: a controller and a Lyapunov function of the next state", (2,))
class LyapunovController(nn.Module):
    """x' = x + dt (A x + B tanh(K x)), and the scores of both states."""

    def __init__(self) -> None:
        super().__init__()
        self.controller = nn.Sequential(nn.Linear(2, 6), nn.LeakyReLU(), nn.Linear(6, 1))
        self.lyapunov = nn.Sequential(nn.Linear(2, 6), nn.LeakyReLU(), nn.Linear(6, 1))
        self.register_buffer("A", torch.tensor([[0.0, 1.0], [1.0, -0.1]]))
        self.register_buffer("B", torch.tensor([[0.0], [1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        u = torch.clamp(self.controller(x), min=-1.0, max=1.0)
        y = x + 0.05 * (torch.matmul(x, self.A.t()) + torch.matmul(u, self.B.t()))
        return self.lyapunov(y) - self.lyapunov(x)
