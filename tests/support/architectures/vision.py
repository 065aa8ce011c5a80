"""Convolutional classifiers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.architectures.entry import architecture

IMAGE = (3, 16, 16)


@architecture("LeNet-5", "LeCun et al. 1998, Gradient-based learning applied to document recognition", (1, 28, 28))
class LeNet5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5, padding=2), nn.Conv2d(3, 4, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(4 * 5 * 5, 12), nn.Linear(12, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        x = x.view(-1, 4 * 5 * 5)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x)))))


@architecture("MNIST example of torch", "Caffe's LeNet as in PyTorch's examples/mnist", (1, 20, 20))
class TorchExample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 4, 5)
        self.drop = nn.Dropout2d()
        self.fc1, self.fc2 = nn.Linear(16, 8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 2))
        x = x.view(x.size(0), -1)
        x = F.dropout(F.relu(self.fc1(x)), training=self.training)
        return self.fc2(x)


@architecture("AlexNet", "Krizhevsky et al. 2012, ImageNet classification (without response normalisation)", IMAGE)
class AlexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2)),
            *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(24, 8), nn.ReLU(inplace=True), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


@architecture(
    "AlexNet with LRN", "Krizhevsky et al. 2012, section 3.3", IMAGE, refused="square has no global Lipschitz constant"
)
def alexnet_lrn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.Flatten(), nn.Linear(6 * 196, 4))


@architecture("VGG-BN", "Simonyan and Zisserman 2014, Very deep convolutional networks", IMAGE)
def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    before = 3
    for width in (4, "M", 6, 6, "M", 8, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        before = width
    head = (nn.Linear(8 * 2 * 2, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 5))
    return nn.Sequential(*layers, nn.Flatten(), *head)


@architecture("Network in network", "Lin et al. 2013, Network in network", IMAGE)
def nin() -> nn.Module:
    def block(n: int, m: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv2d(n, m, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(m, m, 1), nn.ReLU()]

    pools = (nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(), nn.AvgPool2d(3, 2, padding=1))
    return nn.Sequential(
        *block(3, 5, 5), pools[0], pools[1], *block(5, 6, 3), pools[2], nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@architecture("All-CNN", "Springenberg et al. 2014, Striving for simplicity", IMAGE)
class AllCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, padding=1, stride=2)
        self.conv3 = nn.Conv2d(5, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.2, self.training)
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return x.mean((2, 3))


class ConvBN(nn.Module):
    """Convolution, batch normalisation, activation."""

    def __init__(self, n: int, m: int, kernel: int = 1, stride: int = 1, groups: int = 1, act=nn.ReLU) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n, m, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn, self.act = nn.BatchNorm2d(m), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


@architecture("GoogLeNet, Inception block", "Szegedy et al. 2014, Going deeper with convolutions", (4, 8, 8))
class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch1 = ConvBN(4, 2)
        self.branch2 = nn.Sequential(ConvBN(4, 3), ConvBN(3, 4, 3))
        self.branch3 = nn.Sequential(ConvBN(4, 2), ConvBN(2, 2, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True), ConvBN(4, 2))
        self.fc = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)
        return self.fc(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


@architecture("SqueezeNet", "Iandola et al. 2016, SqueezeNet", IMAGE)
class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, 3, 1)
        self.expand1, self.expand3 = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.final = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), kernel_size=3, stride=2, ceil_mode=True)
        x = F.relu(self.squeeze(x))
        x = torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], 1)
        x = F.relu(self.final(F.dropout(x, training=self.training)))
        return F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)


class DenseLayer(nn.Module):
    def __init__(self, n: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(n), nn.Conv2d(n, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = torch.cat(features, 1)
        return self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))


@architecture("DenseNet", "Huang et al. 2016, Densely connected convolutional networks", IMAGE)
class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.layers = nn.ModuleList([DenseLayer(4, 2), DenseLayer(6, 2)])
        self.norm, self.shrink, self.pool = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, bias=False), nn.AvgPool2d(2, 2)
        self.last, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = self.pool(self.shrink(F.relu(self.norm(torch.cat(features, 1)))))
        x = F.relu(self.last(x), inplace=True)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


@architecture("MobileNetV1", "Howard et al. 2017, MobileNets", IMAGE)
def mobilenet() -> nn.Module:
    def separable(n: int, m: int, stride: int) -> list[nn.Module]:
        return [ConvBN(n, n, 3, stride, groups=n), ConvBN(n, m)]

    head = (nn.AvgPool2d(8), nn.Flatten(), nn.Linear(6, 5))
    return nn.Sequential(ConvBN(3, 4, 3, 2), *separable(4, 6, 1), *separable(6, 6, 1), *head)


class InvertedResidual(nn.Module):
    def __init__(self, n: int, m: int, stride: int, act=nn.ReLU6) -> None:
        super().__init__()
        hidden = 2 * n
        self.use_res_connect = stride == 1 and n == m
        self.conv = nn.Sequential(
            *(ConvBN(n, hidden, act=act), ConvBN(hidden, hidden, 3, stride, groups=hidden, act=act)),
            *(nn.Conv2d(hidden, m, 1, bias=False), nn.BatchNorm2d(m)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


def inverted(act) -> nn.Module:
    blocks = (ConvBN(3, 4, 3, 2, act=act), InvertedResidual(4, 4, 1, act), InvertedResidual(4, 6, 2, act))
    return nn.Sequential(*blocks, ConvBN(6, 8, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


@architecture("MobileNetV2", "Sandler et al. 2018, MobileNetV2", IMAGE)
def mobilenet_v2() -> nn.Module:
    return inverted(nn.ReLU6)


@architecture("MobileNetV3 without SE", "Howard et al. 2019, Searching for MobileNetV3", IMAGE)
def mobilenet_v3() -> nn.Module:
    return inverted(nn.Hardswish)


@architecture("EfficientNet without SE", "Tan and Le 2019, EfficientNet; SE left out as in EfficientNet-Lite", IMAGE)
def efficientnet() -> nn.Module:
    return inverted(nn.SiLU)


class SqueezeExcitation(nn.Module):
    def __init__(self, n: int, gate=nn.Sigmoid) -> None:
        super().__init__()
        self.fc1, self.fc2, self.gate = nn.Conv2d(n, 2, 1), nn.Conv2d(2, n, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gate(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return x * scale


def excited(act, gate) -> nn.Module:
    blocks = (ConvBN(3, 4, 3, 2, act=act), SqueezeExcitation(4, gate), ConvBN(4, 5, act=act))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


PRODUCT = "product of two functions of the input"


@architecture("SENet", "Hu et al. 2017, Squeeze-and-excitation networks", IMAGE, refused=PRODUCT)
def senet() -> nn.Module:
    return excited(nn.ReLU, nn.Sigmoid)


@architecture("EfficientNet", "Tan and Le 2019, EfficientNet", IMAGE, refused=PRODUCT)
def efficientnet_se() -> nn.Module:
    return excited(nn.SiLU, nn.Sigmoid)


@architecture("MobileNetV3", "Howard et al. 2019, Searching for MobileNetV3", IMAGE, refused=PRODUCT)
def mobilenet_v3_se() -> nn.Module:
    return excited(nn.Hardswish, nn.Hardsigmoid)


@architecture("CBAM", "Woo et al. 2018, Convolutional block attention module", (4, 8, 8), refused=PRODUCT)
class CBAM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.spatial(pooled))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


@architecture("ShuffleNet", "Zhang et al. 2017, ShuffleNet", (6, 8, 8))
class ShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 1, groups=3, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.conv3, self.bn3 = nn.Conv2d(6, 6, 1, groups=3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = channel_shuffle(F.relu(self.bn1(self.conv1(x))), 3)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        y = F.relu(torch.cat([y, F.avg_pool2d(x, 3, stride=2, padding=1)], 1))
        return y.mean(3).mean(2)


@architecture("ShuffleNetV2", "Ma et al. 2018, ShuffleNet V2", (6, 8, 8))
class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConvBN(3, 3), nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.BatchNorm2d(3), ConvBN(3, 3)
        )
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        x = channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)
        return self.fc(x.mean([2, 3]))


@architecture("Xception", "Chollet 2017, Xception", (4, 8, 8))
class Xception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.pointwise = (
            nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
            nn.Conv2d(4, 6, 1, bias=False),
        )
        self.bn, self.skip, self.skipbn = nn.BatchNorm2d(6), nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.pointwise(self.depthwise(F.relu(x))))
        y = F.max_pool2d(y, 3, 2, 1)
        y += self.skipbn(self.skip(x))
        return F.adaptive_avg_pool2d(F.relu(y), (1, 1)).view(y.size(0), -1)


@architecture("GhostNet", "Han et al. 2020, GhostNet", (4, 8, 8))
class GhostModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.primary, self.cheap = ConvBN(4, 3), ConvBN(3, 3, 3, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        return torch.cat([x1, self.cheap(x1)], dim=1)[:, :5, :, :]


@architecture("Res2Net", "Gao et al. 2019, Res2Net", (6, 6, 6))
class Res2Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv3 = ConvBN(6, 6), nn.Conv2d(6, 6, 1)
        self.convs = nn.ModuleList([nn.Conv2d(2, 2, 3, padding=1) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.conv1(x), 2, 1)
        y = parts[0]
        found = [y]
        for part, conv in zip(parts[1:], self.convs, strict=True):
            y = F.relu(conv(y + part))
            found.append(y)
        return F.relu(self.conv3(torch.cat(found, 1)) + x)


@architecture("CSPDarknet with Mish", "Bochkovskiy et al. 2020, YOLOv4", (3, 8, 8))
class CSP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (
            ConvBN(3, 4, 3, 2, act=nn.Mish),
            ConvBN(4, 2, act=nn.Mish),
            ConvBN(4, 2, act=nn.Mish),
        )
        self.body, self.head = ConvBN(2, 2, 3, act=nn.Mish), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.two(x)
        return self.head(torch.cat([self.one(x), y + self.body(y)], 1))


@architecture("YOLOv2 passthrough", "Redmon and Farhadi 2016, YOLO9000", (2, 8, 8))
class Yolo(nn.Module):
    """Space to depth by views, as darknet's reorg layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            ConvBN(2, 2, 3, act=lambda: nn.LeakyReLU(0.1)),
            ConvBN(2, 3, 3, act=lambda: nn.LeakyReLU(0.1)),
        )
        self.head = nn.Conv2d(11, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        b, c, h, w = x.shape
        y = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous().view(b, c * 4, h // 2, w // 2)
        x = self.conv2(F.max_pool2d(x, 2, 2))
        return self.head(torch.cat([y, x], dim=1))


@architecture("RepVGG", "Ding et al. 2021, RepVGG", (4, 6, 6))
class RepVGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.one = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1, bias=False)
        self.bn3, self.bn1, self.bn0 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn3(self.dense(x)) + self.bn1(self.one(x)) + self.bn0(x))


class LayerNorm2d(nn.LayerNorm):
    """Over channels, as ConvNeXt in torchvision."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


@architecture("ConvNeXt", "Liu et al. 2022, A ConvNet for the 2020s", (3, 12, 12))
class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), LayerNorm2d(4))
        self.dwconv, self.norm = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.LayerNorm(4, eps=1e-2)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)
        self.gamma = nn.Parameter(0.1 * torch.randn(4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        x = x + y.permute(0, 3, 1, 2)
        return self.fc(x.mean([-2, -1]))


@architecture("ConvMixer", "Trockman and Kolter 2022, Patches are all you need?", (3, 8, 8))
class ConvMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.GELU(), nn.BatchNorm2d(4))
        self.depth = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding="same"), nn.GELU(), nn.BatchNorm2d(4))
        self.point = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GELU(), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.point(self.depth(x) + x))


@architecture("Maxout network", "Goodfellow et al. 2013, Maxout networks", (3, 8, 8))
class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(4 * 9, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x.view(x.size(0), 4, 2, x.size(2), x.size(3)).max(2)[0]
        x = torch.flatten(F.max_pool2d(x, 2), 1)
        return self.fc(x).view(-1, 4, 3).max(-1).values


@architecture("PReLU network", "He et al. 2015, Delving deep into rectifiers", (3, 8, 8))
def prelu() -> nn.Module:
    body = (nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 4, 3, stride=2), nn.PReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(16, 4))


@architecture("FRN network", "Singh and Krishnan 2020, Filter response normalization", (3, 6, 6))
class FRN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.eps = nn.Conv2d(3, 4, 3), 1e-2
        self.tau, self.gamma, self.beta = (nn.Parameter(torch.randn(1, 4, 1, 1)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        nu2 = torch.mean(x**2, dim=[2, 3], keepdim=True)
        x = x * torch.rsqrt(nu2 + abs(self.eps))
        return torch.max(self.gamma * x + self.beta, self.tau).mean((2, 3))


@architecture("Spatial transformer", "Jaderberg et al. 2015", (1, 8, 8), refused="places that depend on the input")
class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Linear(64, 6)

    def forward(self, x: Tensor) -> Tensor:
        theta = self.loc(x.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.size(0), 1, 8, 8], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
