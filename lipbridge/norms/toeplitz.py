"""The Toeplitz bound: a closed form above the spectral norm of a convolution, cheap enough for every training step.

A zero-padded convolution is a multi-level block Toeplitz matrix, whose norm is at most the largest spectral norm of
its symbol F(w), and so at most the largest Frobenius norm. ``|F(w)|^2`` is a trigonometric polynomial whose
coefficients are the kernel's autocorrelation, summed over all pairs of channels: neither a matrix product nor an
eigenvalue is needed. On the torus that holds the convolution the frequencies are finitely many, so that the largest is
found exactly.

Source: Araujo, Negrevergne, Chevaleyre, Atif 2020 ("On Lipschitz regularization of convolutional layers using
Toeplitz matrix theory"), whose bound adds the largest values of the output channels' polynomials; the largest value of
their sum, taken here, is never above that. The frequencies of the torus in place of all, and strides, are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.torus import symbols, torus, twiddles


def toeplitz_bound(weight: Tensor, geometry: Convolution) -> Tensor:
    """An upper bound (but for rounding) of the spectral norm of a convolution; differentiable, on any device.

    At most the root of the smaller of (out, phases * in) / groups above the norm of the torus, and equal to it for one
    channel.

    Args:
        weight: kernel ``(out, in / groups, *kernel)``, any floating dtype.

    Law: at least ``penalty_norm(weight, geometry, 2)`` but for rounding and its slack of rank^(1/order).
    """
    held = torus(geometry, weight)
    W = weight if weight.dtype == torch.float64 else weight.float()
    scale = W.detach().abs().amax().clamp_min(torch.finfo(W.dtype).tiny)
    W = W / scale
    squares: list[Tensor] = []
    for start, stop in held.parts(W.shape[0] * W.shape[1] * held.phases):
        re, im = symbols(W, held, *twiddles(held, start, stop, W))
        squares.append((re.square() + im.square()).sum(dim=(-2, -1)).amax())
    largest = torch.stack(squares).amax()
    # The root's slope is infinite at zero, which only a zero kernel reaches.
    root = torch.where(largest > 0, largest, 1.0).sqrt() * (largest > 0)
    return root * scale * held.padding_norm_squared**0.5
