"""Activations as torch modules, those that torch itself has not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Abs(nn.Module):
    """|t|. Saturates every norm."""

    def forward(self, z: Tensor) -> Tensor:
        return z.abs()


class Sin(nn.Module):
    """sin t. Lipschitz constant 1, saturates no norm."""

    def forward(self, z: Tensor) -> Tensor:
        return z.sin()


class Atan(nn.Module):
    """arctan t. Lipschitz constant 1, saturates no norm."""

    def forward(self, z: Tensor) -> Tensor:
        return z.atan()


class GELUTanh(nn.Module):
    """0.5 t (1 + tanh(sqrt(2 / pi) (t + 0.044715 t^3))), ``nn.GELU(approximate="tanh")``. Saturates no norm."""

    def forward(self, z: Tensor) -> Tensor:
        return F.gelu(z, approximate="tanh")


class _Joint(nn.Module):
    """A polyactivation of several components: ``dim`` is 1 for channelwise use on ``(batch, channels, *space)``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = int(dim)

    def extra_repr(self) -> str:
        return "" if self.dim == -1 else f"dim={self.dim}"


class CReLU(_Joint):
    """(relu t, relu -t), concatenated along ``dim``. Saturates every norm."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.relu(), (-z).relu()], dim=self.dim)


class SinCos(_Joint):
    """(sin t, cos t), concatenated along ``dim``. Saturates l_2."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z.sin(), z.cos()], dim=self.dim)


class IdentityAbs(_Joint):
    """(t, |t|), concatenated along ``dim``. Saturates l_inf."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z.abs()], dim=self.dim)


#: The largest double below 1/sqrt(2), so that the stored function has a constant of at most one in l_2.
INVERSE_SQRT2 = 0.7071067811865475


class IdentityAbsL2(_Joint):
    """(t, |t|) / sqrt 2, concatenated along ``dim``. Saturates l_2."""

    def forward(self, z: Tensor) -> Tensor:
        z = z * INVERSE_SQRT2
        return torch.cat([z, z.abs()], dim=self.dim)


class Sin2Pair(_Joint):
    """((t + sin^2 t)/2, (t - sin^2 t)/2), concatenated along ``dim``. Saturates l_1."""

    def forward(self, z: Tensor) -> Tensor:
        half, square = z * 0.5, z.sin().square() * 0.5
        return torch.cat([half + square, half - square], dim=self.dim)
