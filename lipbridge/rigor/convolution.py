"""A proved operator norm of a convolution on its input's size: never below the true one, in floating point.

The norms 1->q and p->inf are the largest column's or row's, boundary included. The spectral norm is

- that of the matrix, group by group, where it is small: exact to about 1e-10;
- otherwise that of the torus that holds the convolution (see ``norms.torus``), times the norm of the padding: exact to
  about 1e-10 for circular padding, an upper bound for the others;
- or the root of (1->1) times (inf->inf), where that is smaller.

For the torus, the rounding of each step is proved: the roots of unity by integer arithmetic, the symbols by the
a-priori error of a dot product, their eigenvalues in ``rigor_gram``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.norms.conv_extremes import extreme_vectors
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.matrix import require_cheap
from lipbridge.norms.torus import Torus, symbols, torus
from lipbridge.rigor.gram import UNDERFLOW, gram_pair, largest_eigenvalue_of_batch_up
from lipbridge.rigor.matrix import proved_operator_norm, times_power_of_two
from lipbridge.rigor.roots import unit_roots
from lipbridge.rounding.scalars import UNIT, add_up, gamma, mul_up, sqrt_up
from lipbridge.vocabulary import Norm

#: The matrices of all groups are built and decomposed up to this many operations, and this many entries.
OPERATIONS, ENTRIES = 1.1e9, 2**24


@torch.no_grad()
def proved_conv_norm(weight: Tensor, geometry: Convolution, p: Norm = 2, q: Norm | None = None) -> float:
    """A double that is never below ``sup ||A x||_q / ||x||_p`` of the convolution A with the stored kernel.

    Args:
        weight: kernel ``(out, in / groups, *kernel)``, any real floating dtype and device; read as float64.
        p: norm of the input space.
        q: norm of the output space, ``p`` if not given.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1 (NP-hard).
        NumericalFailure: for NaN, infinite entries or a norm beyond float64.
        InvalidArgument: if the kernel does not fit the input.

    Law: at least ``|A x|_q / |x|_p`` for every x, evaluated exactly; zero for a zero kernel.
    """
    q = p if q is None else q
    require_cheap(p, q, "operator norm of a convolution")
    geometry.output_shape(weight)
    W = weight.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(W).all()):
        raise NumericalFailure("The kernel holds NaN or infinite entries.")
    if W.numel() == 0 or not bool(W.any()):
        return 0.0
    if (p, q) != (2, 2):
        return _extreme_up(W, geometry, p, q)
    held = torus(geometry, W)
    if not held.exact and _is_small(W, geometry):
        return _by_matrix(W, geometry)
    exponent = math.frexp(float(W.abs().max()))[1]
    value = mul_up(_torus_up(times_power_of_two(W, -exponent), held), *_powers(exponent))
    return min(value, _schur_up(W, geometry))


def _powers(exponent: int) -> tuple[float, ...]:
    """Powers of two whose product is ``2**exponent``, each a normal double."""
    steps = [max(-1000, min(1000, exponent - done)) for done in range(0, exponent, 1000 if exponent > 0 else -1000)]
    return tuple(2.0**step for step in steps)


def _extreme_up(W: Tensor, geometry: Convolution, p: Norm, q: Norm) -> float:
    largest, slack, rounded = 0.0, 0.0, False
    taps = math.prod(W.shape[2:])
    pair: tuple[Norm, Norm] = (1, q) if p == 1 else (p, "inf")
    for vectors, merged in extreme_vectors(W, geometry, columns=p == 1):
        largest = max(largest, proved_operator_norm(vectors.T if p == 1 else vectors, *pair))
        rounded = rounded or merged
    if not rounded:
        return largest
    # Taps that share an input were added, with a rounding relative to the sum of their magnitudes.
    for vectors, _ in extreme_vectors(W.abs(), geometry, columns=p == 1):
        slack = max(slack, proved_operator_norm(vectors.T if p == 1 else vectors, *pair))
    return add_up(largest, mul_up(2.0 * gamma(taps), slack))


def _is_small(W: Tensor, geometry: Convolution) -> bool:
    rows, columns = (math.prod(shape) // geometry.groups for shape in (geometry.output_shape(W), geometry.input_shape))
    operations = geometry.groups * min(rows, columns) ** 2 * max(rows, columns)
    return operations <= OPERATIONS and geometry.groups * max(rows, columns) ** 2 <= ENTRIES


def _by_matrix(W: Tensor, geometry: Convolution) -> float:
    one = replace(geometry, input_shape=(W.shape[1], *geometry.space), groups=1)
    kernels = W.reshape(geometry.groups, -1, *W.shape[1:]).unbind()
    value = max(proved_operator_norm(one.matrix(kernel)) for kernel in kernels)
    if geometry.padding_mode == "zeros":
        return value  # each entry of the matrix is one of the kernel's
    return add_up(value, mul_up(2.0 * gamma(math.prod(W.shape[2:])), _schur_up(W.abs(), geometry)))


def _schur_up(W: Tensor, geometry: Convolution) -> float:
    """The root of the largest column's times the largest row's l_1 norm: never below the spectral norm."""
    return mul_up(*(sqrt_up(_extreme_up(W, geometry, norm, norm)) for norm in (1, "inf")))


def _torus_up(W: Tensor, held: Torus) -> float:
    """The largest singular value of the torus times the norm of the padding; entries of W at most one."""
    taps = math.prod(W.shape[2:])
    bound, seen, gram_error = 0.0, 0.0, 0.0
    for start, stop in held.parts(W.shape[0] * W.shape[1] * held.phases):
        re, im = (part.flatten(0, 1) for part in symbols(W, held, *_twiddles(held, start, stop)))
        B = (re, im) if re.shape[-2] <= re.shape[-1] else (re.mT, -im.mT)
        G, error = gram_pair(B)
        part, seen = largest_eigenvalue_of_batch_up(G, seen)
        bound, gram_error = max(bound, part), max(gram_error, float(error.max()))
    # Each symbol is off by at most `relative` times the kernel's magnitudes, added over the taps.
    relative = add_up(mul_up(2.0, gamma(taps + 2)), 5.0 * len(held.axes) * UNIT)
    one = torch.ones(1, taps, dtype=torch.float64)
    magnitudes, _ = symbols(W.abs(), held, one, one)
    rows, columns = float(magnitudes.sum(-1).max()), float(magnitudes.sum(-2).max())
    slack = mul_up(
        1.0 + 4.0 * gamma(taps + magnitudes.shape[-1] + magnitudes.shape[-2]), sqrt_up(mul_up(rows, columns))
    )
    value = add_up(sqrt_up(add_up(bound, gram_error)), mul_up(relative, slack), UNDERFLOW)
    return mul_up(value, sqrt_up(float(held.padding_norm_squared)))


def _twiddles(held: Torus, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all taps, together off by at most 5 UNIT an axis: 1.42 each, 2.83 and 1.42 for a product."""
    cosines, sines = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for axis, turns in zip(held.axes, held.turns(start, stop, torch.device("cpu")), strict=True):
        c, s = (table[turns] for table in unit_roots(axis.frequencies))
        cosines, sines = cosines * c - sines * s, cosines * s + sines * c
    return cosines, sines
