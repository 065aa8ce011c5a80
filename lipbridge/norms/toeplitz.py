"""The Toeplitz bound: a closed form above the spectral norm of a convolution, cheap enough for every training step.

A zero-padded convolution is a multi-level block Toeplitz matrix, whose norm is at most the largest spectral norm of
its symbol F(w), and so at most the largest Frobenius norm. ``|F(w)|^2`` is a trigonometric polynomial whose
coefficients are the kernel's autocorrelation, summed over all pairs of channels: neither a matrix product nor an
eigenvalue is needed. On the torus that holds the convolution the frequencies are finitely many, so that the largest is
found exactly.

Source: Araujo, Negrevergne, Chevaleyre, Atif 2020 ("On Lipschitz regularization of convolutional layers using
Toeplitz matrix theory"), where the polynomial is sampled and the samples' largest is raised by a factor that covers the
rest. The frequencies of the torus, which need no factor, and strides and dilations are ours.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.torus import AxisTorus, Torus, symbols, torus, twiddles


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
    largest = _largest_on(held, _autocorrelation(W / scale, held))
    # The root's slope is infinite at zero, which only a zero kernel reaches.
    root = torch.where(largest > 0, largest, 1.0).sqrt() * (largest > 0)
    return root * scale * held.padding_norm_squared**0.5


def _autocorrelation(W: Tensor, held: Torus) -> Tensor:
    """The coefficients of ``|F(w)|^2``, per axis at lags 0 .. k - 1, 1 - k .. -1, and last the groups.

    By way of a torus just large enough that no lag meets another.
    """
    small = Torus(tuple(replace(axis, frequencies=2 * _reach(axis) + 1) for axis in held.axes), held.groups)
    re, im = symbols(W, small, *twiddles(small, 0, small.frequency_count, W))
    squares = (re.square() + im.square()).sum(dim=(-2, -1))
    sizes = [axis.frequencies for axis in small.axes]
    squares = squares.reshape(*sizes[:-1], sizes[-1] // 2 + 1, held.groups)
    spectrum = torch.complex(squares, torch.zeros_like(squares))
    fft: Any = torch.fft  # torch states no types for it
    return fft.irfftn(spectrum, s=sizes, dim=list(range(len(sizes))))


def _reach(axis: AxisTorus) -> int:
    """The largest lag between two taps of one phase."""
    return max(shift for _, shift in axis.taps)


def _largest_on(held: Torus, coefficients: Tensor) -> Tensor:
    """The largest value over the torus, and over the groups, of a real polynomial with these coefficients."""
    values = torch.complex(coefficients, torch.zeros_like(coefficients))
    for dim, axis in enumerate(held.axes):
        lags = torch.arange(2 * _reach(axis) + 1, device=coefficients.device)
        lags = lags - (lags > _reach(axis)) * len(lags)
        frequencies = torch.arange(axis.frequencies, device=coefficients.device)
        turns = (frequencies[:, None] * lags % axis.frequencies).to(coefficients.dtype)
        angles = turns * (2.0 * math.pi / axis.frequencies)
        twiddle = torch.complex(torch.cos(angles), torch.sin(angles))
        values = (values.movedim(dim, -1) @ twiddle.mT).movedim(-1, dim)
    return values.real.amax()
