"""Norms of convolutions as the operators that they are on their input's size, not of the reshaped kernel.

:func:`conv_operator_norm` is the accurate value; :func:`penalty_norm` and :func:`toeplitz_bound` are the differentiable
upper bounds for training; the proved value is in ``lipbridge.rigor.convolution``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge.linalg import spectral_norm
from lipbridge.norms.conv_extremes import extreme_norm
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.gram_convolution import conv_dual, gram_bound, penalty_norm
from lipbridge.norms.lanczos import largest_singular_value
from lipbridge.norms.matrix import require_cheap
from lipbridge.norms.toeplitz import toeplitz_bound
from lipbridge.norms.torus import Torus, symbols, torus, twiddles
from lipbridge.vocabulary import Norm

__all__ = [
    "Convolution",
    "circular_norm",
    "conv_dual",
    "conv_operator_norm",
    "gram_bound",
    "penalty_norm",
    "toeplitz_bound",
]

#: Up to this many entries the operator's matrix is built and decomposed.
SMALL = 2**19


@torch.no_grad()
def conv_operator_norm(weight: Tensor, geometry: Convolution, norm: Norm = 2, to: Norm | None = None) -> float:
    """The operator norm of a convolution from l_p to l_q, accurate in float64, boundary included; not proved.

    For 1->q and p->inf the largest column or row. For 2->2 the singular values of the frequency blocks where the
    convolution is circular, of the matrix where that is small, and Lanczos iteration on the operator otherwise.

    Args:
        weight: kernel ``(out, in / groups, *kernel)``, any real dtype.
        norm: p.
        to: q, ``norm`` if not given.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1.

    Law: equals ``operator_norm(geometry.matrix(weight), p, q)``.
    """
    q = norm if to is None else to
    require_cheap(norm, q, "operator norm of a convolution")
    outputs = geometry.output_shape(weight)
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    exponent = math.frexp(largest)[1]
    half = exponent // 2  # huge and tiny kernels: squares stay in range; in two steps, since 2**1074 is no double
    kernel = weight.double() * 2.0**-half * 2.0 ** (half - exponent)
    if (norm, q) != (2, 2):
        value = extreme_norm(kernel, geometry, norm, q)
    else:
        held = torus(geometry, kernel)
        if held.exact:
            value = _largest_symbol(kernel, held)
        elif math.prod(outputs) * math.prod(geometry.input_shape) <= SMALL:
            value = spectral_norm(geometry.matrix(kernel))
        else:
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(1, *geometry.input_shape, generator=generator, dtype=torch.float64).to(weight.device)
            value = largest_singular_value(
                lambda x: geometry.apply(kernel, x), lambda y: geometry.adjoint(kernel, y), start
            )
    return math.ldexp(float(value), exponent)


@torch.no_grad()
def circular_norm(weight: Tensor, geometry: Convolution) -> float:
    """The largest singular value of the torus that holds the convolution, in float64, by SVD of its symbols.

    Law: at least ``conv_operator_norm(weight, geometry)`` over the norm of the padding; equal to it where the
    convolution is circular.
    """
    return float(_largest_symbol(weight.double(), torus(geometry, weight)))


def _largest_symbol(weight: Tensor, held: Torus) -> Tensor:
    largest = weight.new_zeros(())
    for start, stop in held.parts(weight.shape[0] * weight.shape[1] * held.phases):
        re, im = symbols(weight, held, *twiddles(held, start, stop, weight))
        largest = torch.maximum(largest, spectral_norm(torch.complex(re, im)).amax())
    return largest
