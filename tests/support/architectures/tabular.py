"""Networks on vectors: classifiers, control, embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.architectures.entry import architecture


@architecture("LeNet-300-100", "LeCun et al. 1998, Gradient-based learning", (1, 6, 6))
def lenet_300() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10))


@architecture("MLP with softmax", "Bishop 1995, Neural networks for pattern recognition", (4,))
def softmax_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(dim=1))


@architecture("MLP with log-softmax", "PyTorch's examples", (4,))
class LogSoftmaxMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn, self.fc2 = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.fc2(F.relu(self.bn(self.fc1(x)))), dim=1)


@architecture("Self-normalising network", "Klambauer et al. 2017, Self-normalizing neural networks", (5,))
def selu() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.SELU(), nn.AlphaDropout(0.1), nn.Linear(8, 8), nn.SELU(), nn.Linear(8, 2))


@architecture("Wide and deep", "Cheng et al. 2016, Wide & deep learning", (6,))
class WideAndDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Linear(6, 1), nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.wide(x) + self.head(self.deep(x))).squeeze(-1)


@architecture("Tabular ResNet", "Gorishniy et al. 2021, Revisiting deep learning models for tabular data", (5,))
class TabularResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
        block = (nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 6), nn.Dropout(0.1))
        self.block = nn.Sequential(*block)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.block(x))


@architecture("DCN", "Wang et al. 2017, Deep & cross network", (4,), refused="product of two functions of the input")
class CrossNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cross = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.cross(x) + x


@architecture("Neural additive model", "Agarwal et al. 2020, Neural additive models", (3,))
class AdditiveModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList([nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)) for _ in range(3)])
        self.bias = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        parts = [net(x[:, i].unsqueeze(1)) for i, net in enumerate(self.nets)]
        return torch.stack(parts, dim=-1).sum(dim=-1) + self.bias


@architecture("Mixture of experts", "Jacobs et al. 1991", (4,), refused="product of two functions of the input|softmax")
class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights = F.softmax(self.gate(x), dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (weights.unsqueeze(-1) * outputs).sum(1)


@architecture("RBF network", "Broomhead and Lowe 1988", (2,), refused="no global Lipschitz constant")
class RBF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centers, self.linear = nn.Parameter(torch.randn(5, 2)), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.exp(-(x.unsqueeze(1) - self.centers).pow(2).sum(-1)))


@architecture("DQN", "Mnih et al. 2015, Human-level control", (2, 20, 20))
class DQN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 8, stride=4), nn.Conv2d(4, 4, 3)
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x / 255.0
        x = F.relu(self.conv2(F.relu(self.conv1(x)))).reshape(x.shape[0], -1)
        return self.fc2(F.relu(self.fc1(x)))


@architecture("Dueling DQN", "Wang et al. 2016, Dueling network architectures", (5,))
class Dueling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feature, self.value, self.advantage = nn.Linear(5, 6), nn.Linear(6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.feature(x))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(dim=1, keepdim=True)


@architecture("PPO actor", "Schulman et al. 2017, Proximal policy optimization", (4,))
def ppo() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


@architecture("SAC actor", "Haarnoja et al. 2018, Soft actor-critic", (4,))
class SAC(nn.Module):
    """The mean action, scaled to its range, and the clamped log deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.register_buffer("scale", torch.tensor([2.0, 0.5]))
        self.register_buffer("shift", torch.tensor([0.1, -0.3]))

    def forward(self, x: Tensor) -> Tensor:
        mean, log_std = torch.chunk(self.net(x), 2, dim=-1)
        action = torch.tanh(mean) * self.scale + self.shift
        return torch.cat([action, log_std.clamp(-20, 2)], dim=-1)


@architecture("TD3 critic", "Fujimoto et al. 2018, Addressing function approximation error", (5,))
class TD3(nn.Module):
    """Two critics of state and action, and the smaller value."""

    def __init__(self) -> None:
        super().__init__()
        self.q1, self.q2 = (nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(2))

    def forward(self, state_action: Tensor) -> Tensor:
        return torch.min(self.q1(state_action), self.q2(state_action))


class CLIPHead(nn.Module):
    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.proj, self.normalised = nn.Linear(6, 4, bias=False), normalised
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))
        text = torch.randn(5, 4)
        self.register_buffer("text", text / text.norm(dim=-1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        if self.normalised:
            x = x / x.norm(dim=-1, keepdim=True)
        return self.logit_scale.exp() * x @ self.text.t()


CLIP = "Radford et al. 2021, Learning transferable visual models"


@architecture("CLIP head", CLIP, (6,), computed=True)
def clip_head() -> nn.Module:
    return CLIPHead(False)


@architecture(
    "CLIP head with normalised features", CLIP, (6,), refused="dividing by one has no global Lipschitz constant"
)
def clip_head_normalised() -> nn.Module:
    return CLIPHead(True)


@architecture(
    "Cosine classifier", "Gidaris and Komodakis 2018", (4,), refused="dividing by one has no global Lipschitz constant"
)
class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


@architecture("Prototypical network", "Snell et al. 2017", (4,), refused="square has no global Lipschitz constant")
class Prototypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.prototypes = nn.Linear(4, 3), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.pow(self.embed(x).unsqueeze(1) - self.prototypes.unsqueeze(0), 2).sum(2)


@architecture("RMSNorm MLP", "Zhang and Sennrich 2019, Root mean square layer normalization", (6,))
class RMSNormMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 8), nn.RMSNorm(8, eps=1e-2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.norm(self.fc1(x))))


@architecture("Llama's RMSNorm", "Touvron et al. 2023, LLaMA", (3, 6))
class LlamaNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.weight, self.eps = nn.Linear(6, 6), nn.Parameter(torch.rand(6) + 0.5), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)) + x


@architecture("Deep equilibrium, unrolled", "Bai et al. 2019, Deep equilibrium models", (4,))
class Equilibrium(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z, u = torch.zeros_like(x), self.U(x)
        for _ in range(4):
            z = F.relu(0.5 * self.W(z) + u)
        return z
