"""Networks for sequences, sets, points and graphs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.support.architectures.entry import architecture

PRODUCT = "product of two functions of the input"


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n: int, m: int, dilation: int) -> None:
        super().__init__()
        pad = 2 * dilation
        self.conv1, self.chomp = weight_norm(nn.Conv1d(n, m, 3, padding=pad, dilation=dilation)), Chomp1d(pad)
        self.drop, self.downsample = nn.Dropout(0.2), nn.Conv1d(n, m, 1) if n != m else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.drop(F.relu(self.chomp(self.conv1(x))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


@architecture(
    "TCN", "Bai et al. 2018, An empirical evaluation of generic convolutional networks", (2, 12), computed=True
)
class TCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.linear = nn.Sequential(TemporalBlock(2, 4, 1), TemporalBlock(4, 4, 2)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[:, :, -1])


@architecture("Causal convolutions by padding", "van den Oord et al. 2016, WaveNet, without its gates", (2, 10))
class CausalConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(2, 4, 2), nn.Conv1d(4, 3, 2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.pad(x, (1, 0))))
        return self.conv2(F.pad(x, (2, 0)))[..., -1]


@architecture("WaveNet", "van den Oord et al. 2016, WaveNet", (2, 10), refused=PRODUCT)
class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate = nn.Conv1d(2, 3, 2, dilation=2), nn.Conv1d(2, 3, 2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.filter(x)) * torch.sigmoid(self.gate(x))


@architecture(
    "Gated convolution",
    "Dauphin et al. 2016, Language modeling with gated convolutions",
    (4, 8),
    refused=PRODUCT,
)
def gated() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 6, 3), nn.GLU(dim=1))


@architecture("LSTM", "Hochreiter and Schmidhuber 1997", (5, 3), refused=PRODUCT)
class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, -1, :])


@architecture("GRU", "Cho et al. 2014", (5, 3), refused=PRODUCT)
class GRU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.fc = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.gru(x)[0][:, -1])


@architecture("Elman network, unrolled", "Elman 1990, Finding structure in time", (4, 3))
class Elman(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i2h, self.h2h, self.fc = nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.i2h(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.i2h(x[:, t, :]) + self.h2h(h))
        return self.fc(h)


def separable(n: int, m: int) -> list[nn.Module]:
    depthwise = (nn.Conv1d(n, n, 3, padding=1, groups=n, bias=False), nn.BatchNorm1d(n), nn.ReLU())
    return [*depthwise, nn.Conv1d(n, m, 1, bias=False), nn.BatchNorm1d(m), nn.ReLU()]


@architecture("DS-CNN for keywords", "Zhang et al. 2017, Hello edge", (5, 12))
def keywords() -> nn.Module:
    stem = (nn.Conv1d(5, 6, 4, stride=2, padding=1, bias=False), nn.BatchNorm1d(6), nn.ReLU())
    return nn.Sequential(
        *stem, *separable(6, 6), *separable(6, 4), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    )


@architecture("M5 for raw audio", "Dai et al. 2016, Very deep convolutional neural networks for raw waveforms", (1, 64))
class M5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.pool1 = nn.Conv1d(1, 4, 8, stride=4), nn.BatchNorm1d(4), nn.MaxPool1d(2)
        self.conv2, self.bn2, self.fc = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)
        return self.fc(x).squeeze(1)


@architecture("TextCNN on embeddings", "Kim 2014, Convolutional neural networks for sentence classification", (8, 4))
class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs, self.fc = nn.ModuleList([nn.Conv2d(1, 3, (k, 4)) for k in (2, 3)]), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        x = [F.max_pool1d(i, i.size(2)).squeeze(2) for i in x]
        return self.fc(torch.cat(x, 1))


@architecture("DLinear", "Zeng et al. 2022, Are transformers effective for time series forecasting?", (12, 2))
class DLinear(nn.Module):
    """A moving average with repeated ends, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.avg, self.seasonal, self.trend = nn.AvgPool1d(5, stride=1), nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        padded = torch.cat([x[:, 0:1, :].repeat(1, 2, 1), x, x[:, -1:, :].repeat(1, 2, 1)], dim=1)
        trend = self.avg(padded.permute(0, 2, 1)).permute(0, 2, 1)
        seasonal = (x - trend).permute(0, 2, 1)
        return (self.seasonal(seasonal) + self.trend(trend.permute(0, 2, 1))).permute(0, 2, 1)


@architecture("NLinear", "Zeng et al. 2022, Are transformers effective for time series forecasting?", (6, 2))
class NLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        last = x[:, -1:, :].detach()
        return self.linear((x - last).permute(0, 2, 1)).permute(0, 2, 1) + last


@architecture("N-BEATS", "Oreshkin et al. 2019, N-BEATS", (6,))
class NBeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(6, 8) for _ in range(2)])
        self.theta = nn.ModuleList([nn.Linear(8, 9) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        forecast = 0
        for fc, theta in zip(self.fc, self.theta, strict=True):
            backward, forward = theta(F.relu(fc(x))).split([6, 3], dim=-1)
            x = x - backward
            forecast = forecast + forward
        return forecast


@architecture("TSMixer", "Chen et al. 2023, TSMixer", (6, 3))
class TSMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time, self.features, self.head = nn.Linear(6, 6), nn.Linear(3, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.relu(self.time(x.mT)).mT
        x = x + F.relu(self.features(x))
        return self.head(x.swapaxes(1, 2)).swapaxes(1, 2)


@architecture("PointNet", "Qi et al. 2016, PointNet", (3, 8))
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 6, 1)
        self.bn1, self.bn2, self.fc = nn.BatchNorm1d(4), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = torch.max(x, 2, keepdim=True)[0]
        return self.fc(x.view(-1, 6))


@architecture("DeepSets", "Zaheer et al. 2017, Deep sets", (5, 3))
class DeepSets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 6), nn.ELU(), nn.Linear(6, 4))
        self.rho = nn.Sequential(nn.Linear(4, 6), nn.ELU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rho(self.phi(x).sum(dim=1))


@architecture("DeepSets, equivariant", "Zaheer et al. 2017, Deep sets, section 3.1", (5, 3))
class Equivariant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.linear = nn.Linear(3, 4), nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        xm, _ = x.max(1, keepdim=True)
        return torch.tanh(self.gamma(x) - self.linear(xm))


@architecture("GCN on a fixed graph", "Kipf and Welling 2016, Graph convolutional networks", (4, 3))
class GCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        A = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]).float() + torch.eye(4)
        d = A.sum(1).rsqrt()
        self.register_buffer("A", d[:, None] * A * d[None, :])
        self.w1, self.w2 = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.matmul(self.A, torch.matmul(x, self.w1)))
        return torch.einsum("ij,bjk,kl->bil", self.A, x, self.w2)


@architecture("GIN on a fixed graph", "Xu et al. 2018, How powerful are graph neural networks?", (4, 3))
class GIN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", torch.tensor([[0.0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0]]))
        self.eps, self.mlp = nn.Parameter(torch.tensor(0.3)), nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp((1 + self.eps) * x + self.A @ x).sum(1)


@architecture("Siamese network", "Koch et al. 2015, Siamese neural networks for one-shot recognition", (2, 1, 6, 6))
class Siamese(nn.Module):
    """Both images in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4), nn.Sigmoid())
        self.out = nn.Linear(4, 1)

    def forward(self, pair: Tensor) -> Tensor:
        a, b = self.net(pair[:, 0]), self.net(pair[:, 1])
        return self.out(torch.abs(a - b))


@architecture(
    "Fourier neural operator", "Li et al. 2020, Fourier neural operator", (2, 8), refused="Fourier|complex|Complex"
)
class FNO(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, 2, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        xf = torch.fft.rfft(x)[:, :, :3]
        return torch.fft.irfft(torch.einsum("bix,iox->box", xf, self.weights), n=x.size(-1))
