"""Gram iteration on a convolution: an upper estimate of its spectral norm for training, by the torus that holds it.

At each frequency of the torus (see ``torus``) the symbol B is a small complex matrix, and squaring ``B B*`` s times
gives its Schatten norm, as ``gram`` does for a dense layer. All frequencies and groups are one batch; each matrix is
divided by its own size at every squaring, so that no power overflows or vanishes.

The gradient is not taken through the squarings: a norm is the inner product with its own gradient D, so ``<D, B>``
with D held constant has the right value and the right gradient, and D is one product more. Through the twiddles it
becomes a kernel of the weight's shape, which a penalty can hold over some steps (see ``estimate``).

Source: Delattre, Barthelemy, Araujo, Allauzen 2023 (Gram iteration by frequency for circular padding); the tight torus,
strides, dilations and the dual kernel are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.linalg import vector_norm
from lipbridge.norms.conv_extremes import extreme_vectors
from lipbridge.norms.conv_geometry import Convolution
from lipbridge.norms.estimate import SHARPNESS, dual_matrix, estimate_by_dual
from lipbridge.norms.matrix import require_cheap
from lipbridge.norms.torus import symbols, torus, twiddles
from lipbridge.vocabulary import Norm


def penalty_norm(weight: Tensor, geometry: Convolution, norm: Norm = 2, iterations: int = 6) -> Tensor:
    """The norm of a convolution from l_p to l_p for training: an upper bound but for rounding, with its gradient.

    For l_2 the largest Schatten norm of order ``2 (2^iterations + 1)`` of a frequency block of the torus, times the
    norm of the padding; for l_1 and l_inf exact. The gradient of a maximum is that of the largest alone;
    :func:`conv_dual` spreads it. Runs on any device, ``meta`` included, without host synchronisation.

    Args:
        weight: kernel ``(out, in / groups, *kernel)``, any floating dtype.
        iterations: squarings of each block's Gram matrix.

    Law: at least ``conv_operator_norm``, and at most rank^(1/order) above that of the torus.
    """
    dual, _ = conv_dual(weight, geometry, norm, squarings=iterations, smooth=False)
    return estimate_by_dual(weight, dual)


@torch.no_grad()
def gram_bound(weight: Tensor, geometry: Convolution, iterations: int = 6) -> Tensor:
    """Delattre's upper bound of the spectral norm after some iterations, without a gradient; a tensor without axes.

    The first iteration is the Gram matrix, each further one a squaring, and the last takes the Frobenius norm: the
    Schatten norm of order ``2^(iterations + 1)`` of the frequency block where it is largest.
    """
    held = torus(geometry, weight)
    largest = weight.new_zeros((), dtype=_working(weight).dtype)
    for start, stop in held.parts(weight.shape[0] * weight.shape[1] * held.phases):
        B, scale = _scaled(torch.complex(*symbols(_working(weight), held, *twiddles(held, start, stop, weight))))
        power, _, log_scale = _gram_power(B, iterations - 1)
        log_norm = (vector_norm(power, 2, (-2, -1)).log() + log_scale) / 2.0**iterations
        largest = torch.maximum(largest, (torch.exp(log_norm) * scale).amax())
    return largest * held.padding_norm_squared**0.5


@torch.no_grad()
def conv_dual(
    weight: Tensor, geometry: Convolution, p: Norm = 2, q: Norm | None = None, squarings: int = 6, smooth: bool = True
) -> tuple[Tensor, Tensor]:
    """A dual kernel D of the weight's shape for the norm p->q, and that norm; see ``dual_matrix``.

    For 2->2 the Schatten norm of order ``2 (2^squarings + 1)`` of all frequency blocks of the torus together if
    ``smooth``, or of the largest block; for the others the l_32 norm of the rows' (columns') lengths, or the largest.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1.

    Law: ``<D, weight>`` is that norm: never below the operator's norm; ``<D, V>`` is never above that norm of V.
    """
    q = p if q is None else q
    require_cheap(p, q, "operator norm of a convolution")
    W = _working(weight.detach())
    dual = (
        _spectral_dual(W, geometry, squarings, smooth) if (p, q) == (2, 2) else _extreme_dual(W, geometry, p, q, smooth)
    )
    return dual, estimate_by_dual(weight, dual)


def _working(weight: Tensor) -> Tensor:
    return weight if weight.dtype == torch.float64 else weight.float()


def _scaled(B: Tensor) -> tuple[Tensor, Tensor]:
    """``B / scale`` with fewer rows than columns, and the scale ``(...,)`` of each matrix."""
    scale = B.abs().amax(dim=(-2, -1)).clamp_min(torch.finfo(B.dtype).tiny)
    scaled = B / scale[..., None, None]
    return (scaled if B.shape[-2] <= B.shape[-1] else scaled.mH), scale


def _gram_power(B: Tensor, squarings: int) -> tuple[Tensor, Tensor, Tensor]:
    """``(P, B B*, l)`` with ``(B B*)^(2^squarings) = P exp(l)`` and P of Frobenius norm one (zero if B is)."""
    gram = B @ B.mH
    power, log_scale = gram, torch.zeros_like(gram[..., 0, 0].real)
    for squaring in range(squarings + 1):
        if squaring:
            power, log_scale = power @ power, 2.0 * log_scale
        size = vector_norm(power, 2, (-2, -1)).clamp_min(torch.finfo(B.dtype).tiny)
        power, log_scale = power / size[..., None, None], log_scale + size.log()
    return power, gram, log_scale


def _spectral_dual(W: Tensor, geometry: Convolution, squarings: int, smooth: bool) -> Tensor:
    """The gradient of the Schatten norm of all blocks, or of the largest, summed over parts of the frequencies."""
    held = torus(geometry, W)
    tiny = torch.finfo(W.dtype).tiny
    order = 2.0 * (2.0**squarings + 1.0)
    total, top = torch.zeros_like(W), W.new_zeros(())  # the sum of D share, and the largest norm, up to here
    shares = W.new_zeros(())  # the sum of (norm / top)^order
    for start, stop in held.parts(W.shape[0] * W.shape[1] * held.phases):
        with torch.enable_grad():  # for the transposed transform alone: the squarings are not recorded
            kernel = W.detach().requires_grad_()
            B = torch.complex(*symbols(kernel, held, *twiddles(held, start, stop, W)))
        D, norms = _schatten_duals(B.detach(), squarings)
        rising = torch.maximum(top, norms.amax())
        ratio = norms / rising.clamp_min(tiny)
        if smooth:
            shrink = top / rising.clamp_min(tiny)
            weights, keep = ratio.pow(order - 1.0), shrink.pow(order - 1.0)
            shares = shares * shrink.pow(order) + ratio.pow(order).sum()
        else:
            weights, keep = _first_largest(ratio), (top >= rising).to(W.dtype)
            weights = weights * (1.0 - keep)
            shares = torch.ones_like(shares)
        (part,) = torch.autograd.grad(B, kernel, D * weights[..., None, None])
        total, top = total * keep + part, rising
    factor = held.padding_norm_squared**0.5
    return total * (factor / shares.clamp_min(tiny).pow(1.0 - 1.0 / order))


def _first_largest(values: Tensor) -> Tensor:
    flat = values.flatten()
    chosen = torch.zeros_like(flat).scatter(0, flat.argmax(dim=0, keepdim=True), 1.0)
    return chosen.reshape(values.shape)


def _schatten_duals(B: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """The gradients ``(..., m, n)`` of each matrix's Schatten norm of order ``2 (2^squarings + 1)``, and the norms."""
    tiny = torch.finfo(B.dtype).tiny
    X, scale = _scaled(B)
    if X.shape[-2] == 1:  # one row: the Frobenius norm is the norm
        size = vector_norm(X, 2, (-2, -1))
        D, norms = X / size.clamp_min(tiny)[..., None, None], size
    else:
        power, gram, log_scale = _gram_power(X, squarings)
        trace = (power.conj() * gram).real.sum(dim=(-2, -1)).clamp_min(tiny)
        alive = gram.diagonal(dim1=-2, dim2=-1).real.sum(dim=-1) > 0
        norms = torch.exp((trace.log() + log_scale) / (2.0 * (2.0**squarings + 1.0))) * alive
        D = power @ X * (norms / trace)[..., None, None]
    return (D if B.shape[-2] <= B.shape[-1] else D.mH), norms * scale


def _extreme_dual(W: Tensor, geometry: Convolution, p: Norm, q: Norm, smooth: bool) -> Tensor:
    """The gradient of the largest (or the l_32 norm of the) rows or columns."""
    duals: list[Tensor] = []
    with torch.enable_grad():
        kernel = W.detach().requires_grad_()
        for vectors, _ in extreme_vectors(kernel, geometry, columns=p == 1):
            matrix = vectors.T if p == 1 else vectors
            D = dual_matrix(matrix.detach(), p, q)[0] if smooth else _sharp_dual(matrix.detach(), p, q)
            duals.append(torch.autograd.grad(matrix, kernel, D)[0])
    if len(duals) < 2:
        return duals[0] if duals else torch.zeros_like(W)  # none if every window reads padding alone
    stack = torch.stack(duals)
    norms = (stack * W).flatten(1).sum(1)
    ratio = norms / norms.amax().clamp_min(torch.finfo(W.dtype).tiny)
    if smooth:
        shares = ratio.pow(SHARPNESS - 1) / ratio.pow(SHARPNESS).sum().clamp_min(1.0).pow(1.0 - 1.0 / SHARPNESS)
    else:
        shares = _first_largest(ratio)
    return (stack * shares.reshape(-1, *[1] * W.ndim)).sum(0)


def _sharp_dual(matrix: Tensor, p: Norm, q: Norm) -> Tensor:
    """The gradient of the largest row or column norm itself."""
    if (p, q) == (1, "inf"):
        return _first_largest(matrix.abs()) * matrix.sign()
    axis = -2 if p == 1 else -1
    order: Norm = 2 if 2 in (p, q) else 1
    lengths = vector_norm(matrix, order, axis, True)
    tiny = torch.finfo(matrix.dtype).tiny
    return _first_largest(lengths) * (matrix.sign() if order == 1 else matrix / lengths.clamp_min(tiny))
