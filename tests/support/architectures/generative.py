"""Autoencoders, generators, critics, segmentation and super-resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tests.support.architectures.entry import architecture

DCGAN = "Radford et al. 2015, Unsupervised representation learning with DCGAN"


@architecture("DCGAN generator", DCGAN, (5, 1, 1))
def dcgan_generator() -> nn.Module:
    return nn.Sequential(
        *(nn.ConvTranspose2d(5, 4, 4, 1, 0, bias=False), nn.BatchNorm2d(4), nn.ReLU(True)),
        *(nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(True)),
        *(nn.ConvTranspose2d(3, 1, 3, 2, 1, output_padding=1, bias=False), nn.Tanh()),
    )


@architecture("DCGAN discriminator", DCGAN, (1, 16, 16))
class DCGANDiscriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(nn.Conv2d(1, 3, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2, inplace=True)),
            *(nn.Conv2d(4, 1, 4, 1, 0, bias=False), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).view(-1, 1)


@architecture("VAE, mean path", "Kingma and Welling 2013, Auto-encoding variational Bayes", (1, 5, 5))
class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(25, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.fc3, self.fc4 = nn.Linear(3, 8), nn.Linear(8, 25)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        if self.training:
            return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return mu

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x.view(-1, 25)))
        z = self.reparameterize(self.fc21(h), self.fc22(h))
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))


@architecture("VAE with samples", "Kingma and Welling 2013", (6,), refused="random numbers")
class SampledVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        mu = self.encoder(x)
        return self.decoder(mu + 0.1 * torch.randn_like(mu))


@architecture(
    "VQ-VAE", "van den Oord et al. 2017", (6,), refused="indices, which jump|square has no global Lipschitz constant"
)
class VQVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codes, self.decoder = nn.Linear(6, 3), nn.Embedding(5, 3), nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        distances = ((z.unsqueeze(1) - self.codes.weight) ** 2).sum(-1)
        return self.decoder(self.codes(distances.argmin(1)))


@architecture("Convolutional autoencoder", "Masci et al. 2011, Stacked convolutional auto-encoders", (1, 8, 8))
def autoencoder() -> nn.Module:
    encoder = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3, padding=1), nn.ReLU())
    decoder = (nn.Upsample(scale_factor=2), nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    return nn.Sequential(*encoder, *decoder, nn.Sigmoid())


@architecture("Denoising autoencoder, tied weights", "Vincent et al. 2010, Stacked denoising autoencoders", (8,))
class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(8, 5), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.sigmoid(self.encoder(x)), self.encoder.weight.t(), self.bias)


class DoubleConv(nn.Sequential):
    def __init__(self, n: int, m: int) -> None:
        convolutions = [nn.Conv2d(n, m, 3, padding=1), nn.Conv2d(m, m, 3, padding=1)]
        super().__init__(
            *(layer for conv in convolutions for layer in (conv, nn.BatchNorm2d(m), nn.ReLU(inplace=True)))
        )


@architecture("U-Net", "Ronneberger et al. 2015, U-Net", (1, 8, 8))
class UNet(nn.Module):
    """With transposed convolutions; odd sizes are padded, as popular implementations do."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down, self.up = DoubleConv(1, 3), DoubleConv(3, 4), nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.conv, self.outc = DoubleConv(6, 3), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.up(self.down(F.max_pool2d(x1, 2)))
        dy, dx = x1.size(2) - x2.size(2), x1.size(3) - x2.size(3)
        x2 = F.pad(x2, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.outc(self.conv(torch.cat([x1, x2], dim=1)))


@architecture("FCN-8s", "Long et al. 2014, Fully convolutional networks", (3, 8, 8))
class FCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.score1, self.score2 = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)
        self.up2 = nn.ConvTranspose2d(2, 2, 4, stride=2, bias=False)
        self.up1 = nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, bias=False, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        pool1 = F.max_pool2d(F.relu(self.conv1(x)), 2)
        pool2 = F.max_pool2d(F.relu(self.conv2(pool1)), 2)
        up = self.up2(self.score2(pool2))
        up = up[:, :, 1 : 1 + pool1.size(2), 1 : 1 + pool1.size(3)]
        return self.up1(up + self.score1(pool1))


@architecture(
    "SegNet", "Badrinarayanan et al. 2015", (1, 8, 8), refused="places that depend on the input|reads indices"
)
class SegNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.encoder, self.decoder = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, indices = self.pool(F.relu(self.encoder(x)))
        return self.decoder(self.unpool(x, indices))


@architecture("DeepLab, ASPP", "Chen et al. 2017, Rethinking atrous convolution", (3, 8, 8))
class ASPP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 2, 1)
        self.atrous = nn.ModuleList([nn.Conv2d(3, 2, 3, padding=rate, dilation=rate) for rate in (2, 3)])
        self.image, self.project = (
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1), nn.ReLU()),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        found = [self.one(x)] + [F.relu(conv(x)) for conv in self.atrous]
        found.append(F.interpolate(self.image(x), size=size, mode="bilinear", align_corners=False))
        return self.project(torch.cat(found, dim=1))


@architecture("Feature pyramid", "Lin et al. 2017, Feature pyramid networks", (3, 8, 8))
class FPN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
        self.lateral1, self.lateral2, self.smooth = (
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(5, 3, 1),
            nn.Conv2d(3, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        c1 = F.relu(self.c1(x))
        p2 = self.lateral2(F.relu(self.c2(c1)))
        p1 = F.interpolate(p2, scale_factor=2, mode="nearest") + self.lateral1(c1)
        return torch.cat([self.smooth(p1).flatten(1), p2.flatten(1)], 1)


@architecture("SRCNN", "Dong et al. 2014, Image super-resolution", (1, 6, 6))
class SRCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(1, 4, 9, padding=4),
            nn.Conv2d(4, 3, 1),
            nn.Conv2d(3, 1, 5, padding=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))


@architecture("ESPCN", "Shi et al. 2016, Sub-pixel convolutional neural network", (1, 6, 6))
def espcn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.PixelShuffle(2))


@architecture("EDSR", "Lim et al. 2017, Enhanced deep residual networks", (3, 5, 5))
class EDSR(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.tail = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Sequential(nn.Conv2d(4, 12, 3, padding=1), nn.PixelShuffle(2)),
        )
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(True), nn.Conv2d(4, 4, 3, padding=1))
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - self.mean)
        res = self.body(x).mul(0.1)
        res += x
        return self.tail(res) + self.mean


@architecture("SRGAN generator", "Ledig et al. 2017, Photo-realistic super-resolution", (1, 4, 4))
class SRGAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(1, 3, 9, padding=4), nn.PReLU())
        self.block2 = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.PReLU(), nn.Conv2d(3, 3, 3, padding=1)
        )
        self.block3 = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(), nn.Conv2d(3, 1, 9, padding=4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        return (torch.tanh(self.block3(x + self.block2(x))) + 1) / 2


@architecture("CycleGAN generator", "Zhu et al. 2017, Unpaired image-to-image translation", (1, 8, 8))
def cyclegan() -> nn.Module:
    return nn.Sequential(
        *(nn.ReflectionPad2d(3), nn.Conv2d(1, 2, 7), nn.InstanceNorm2d(2, eps=1e-2), nn.ReLU(True)),
        *(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.InstanceNorm2d(3, eps=1e-2), nn.ReLU(True)),
        *(nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), nn.ReLU(True)),
        *(nn.ReflectionPad2d(3), nn.Conv2d(2, 1, 7), nn.Tanh()),
    )


@architecture("PatchGAN", "Isola et al. 2017, Image-to-image translation (pix2pix)", (3, 12, 12))
def patchgan() -> nn.Module:
    body = (nn.Conv2d(3, 3, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4))
    return nn.Sequential(*body, nn.LeakyReLU(0.2, True), nn.Conv2d(4, 1, 3, 1, 1))


@architecture("WGAN-GP critic", "Gulrajani et al. 2017, Improved training of Wasserstein GANs", (1, 8, 8))
def critic() -> nn.Module:
    body = (nn.Conv2d(1, 3, 4, 2, 1), nn.LayerNorm([3, 4, 4], eps=1e-2), nn.LeakyReLU(0.2))
    return nn.Sequential(*body, nn.Conv2d(3, 1, 4, 1, 0), nn.Flatten())


@architecture("SN-GAN discriminator", "Miyato et al. 2018, Spectral normalization", (3, 8, 8), computed=True)
class SNGAN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = spectral_norm(nn.Conv2d(3, 4, 3, 1, 1)), spectral_norm(nn.Conv2d(4, 4, 3, 1, 1))
        self.sc, self.l5 = spectral_norm(nn.Conv2d(3, 4, 1)), spectral_norm(nn.Linear(4, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.conv2(F.relu(self.conv1(x))), 2)
        h = F.relu(h + self.sc(F.avg_pool2d(x, 2)))
        return self.l5(torch.sum(h, dim=(2, 3)))


@architecture("DnCNN", "Zhang et al. 2017, Beyond a Gaussian denoiser", (1, 6, 6))
class DnCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        middle = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
        )
        self.net = nn.Sequential(*middle, nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.net(x)


class EqualLinear(nn.Module):
    """Equalised learning rate: the stored weight is scaled when it is used."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(m, n)), nn.Parameter(torch.randn(m))
        self.scale = 1 / n**0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(F.linear(x, self.weight * self.scale, self.bias), 0.2) * 2**0.5


class PixelNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-2)


@architecture("StyleGAN mapping", "Karras et al. 2018, A style-based generator", (5,), computed=True)
def stylegan() -> nn.Module:
    return nn.Sequential(PixelNorm(), EqualLinear(5, 6), EqualLinear(6, 6))


@architecture("StyleGAN mapping without pixel norm", "Karras et al. 2018, A style-based generator", (5,), computed=True)
def stylegan_plain() -> nn.Module:
    return nn.Sequential(EqualLinear(5, 6), EqualLinear(6, 6))


@architecture(
    "Progressive GAN critic", "Karras et al. 2017, Progressive growing of GANs", (2, 4, 4), refused="variance|batch"
)
class MinibatchStd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        std = torch.sqrt(x.var(0, unbiased=False) + 1e-8).mean()
        return self.conv(torch.cat([x, std.expand(x.size(0), 1, 4, 4)], 1)).flatten(1)
