"""Attention, which multiplies functions of the input with one another: none of these has a global constant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.architectures.entry import architecture

ATTENTION = "Attention multiplies|product of two functions of the input"


class Attention(nn.Module):
    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(n, 3 * n), nn.Linear(n, n), heads

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, t, c))


@architecture("ViT", "Dosovitskiy et al. 2020, An image is worth 16x16 words", (3, 8, 8), refused=ATTENTION)
class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.pos = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 4, 8))
        self.norm, self.attn, self.head = nn.LayerNorm(8), Attention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.pos
        return self.head((x + self.attn(self.norm(x))).mean(1))


@architecture(
    "ViT with class token", "Dosovitskiy et al. 2020, An image is worth 16x16 words", (3, 8, 8), refused=ATTENTION
)
class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls, self.attn = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8)), Attention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), dim=1)
        return self.attn(x)[:, 0]


@architecture("Transformer encoder", "Vaswani et al. 2017, Attention is all you need", (5, 8), refused=ATTENTION)
def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


@architecture("Attention by torch's function", "Vaswani et al. 2017; Dao et al. 2022", (5, 8), refused=ATTENTION)
class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))


@architecture("Non-local block", "Wang et al. 2018, Non-local neural networks", (4, 4, 4), refused=ATTENTION)
class NonLocal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta, self.phi, self.g, self.out = (
            nn.Conv2d(4, 2, 1),
            nn.Conv2d(4, 2, 1),
            nn.Conv2d(4, 2, 1),
            nn.Conv2d(2, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (conv(x).flatten(2) for conv in (self.theta, self.phi, self.g))
        attention = F.softmax(torch.bmm(theta.transpose(1, 2), phi), dim=-1)
        y = torch.bmm(g, attention.transpose(1, 2)).view(x.size(0), 2, 4, 4)
        return x + self.out(y)


@architecture("GAT", "Veličković et al. 2018, Graph attention networks", (4, 3), refused=ATTENTION)
class GAT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W, self.a1, self.a2 = nn.Linear(3, 4, bias=False), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.W(x)
        e = F.leaky_relu(self.a1(h) + self.a2(h).transpose(1, 2), 0.2)
        return torch.matmul(F.softmax(e, dim=-1), h)


@architecture(
    "Attention pooling", "Ilse et al. 2018, Attention-based deep multiple instance learning", (5, 4), refused=ATTENTION
)
class AttentionPooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.attention(x).transpose(1, 2), dim=2)
        return self.head(torch.bmm(weights, x).squeeze(1))


@architecture("Swin block", "Liu et al. 2021, Swin transformer", (4, 4, 4), refused=ATTENTION)
class SwinBlock(nn.Module):
    """A cyclic shift, windows, attention within each."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(x, shifts=(-1, -1), dims=(1, 2))
        windows = x.view(-1, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4)
        return self.attn(windows).view(-1, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 4)
