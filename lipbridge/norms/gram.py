"""Gram iteration: the Schatten norm of high order, a smooth upper estimate of the spectral norm.

Squaring ``W W'`` s times gives ``(W W')^(2^s)``, from which the Schatten norm of order ``2 (2^s + 1)`` follows: above
the spectral norm by at most a factor rank^(1/order), and close to it already for s = 5 or 6. Its gradient spreads
over all leading singular directions by their share, where that of the largest singular value sees one alone: a
penalty on it presses the whole top of the spectrum down together.

Source: Delattre, Barthelemy, Araujo, Allauzen 2023 (Gram iteration for upper bounds); its gradient as a training
signal is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.linalg import vector_norm


@torch.no_grad()
def gram_dual(matrix: Tensor, squarings: int = 6, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradient D of the Schatten norm of order ``2 (2^squarings + 1)`` at W, and the norm itself.

    Args:
        matrix: W, ``(m, n)`` floating, any device. Scaled inside, so huge and tiny entries do not overflow.
        out: where to write D, if not to a new tensor.
        squarings: s; each doubles the order at the price of one product of the smaller side.

    Returns:
        D ``(m, n)`` with ``<D, W> = norm`` and ``<D, V> <= norm of V`` for every V (D is a unit vector of the dual
        norm), and the norm as a tensor without axes. Zero for W = 0.

    Law: spectral norm <= norm <= rank^(1/order) * spectral norm.
    """
    tiny = torch.finfo(matrix.dtype).tiny
    scale = matrix.abs().amax().clamp_min(tiny)
    # Large temporaries cost as much as the products, so D's own memory holds the scaled matrix first.
    dual = torch.div(matrix, scale, out=out)
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = dual @ dual.T if wide else dual.T @ dual
    size = vector_norm(gram).clamp_min(tiny)
    power, log_scale = gram / size, size.log()
    spare = torch.empty_like(power)  # the squarings alternate between two buffers: allocating costs as much again
    for squaring in range(1, squarings + 1):
        torch.mm(power, power, out=spare)
        power, spare, log_scale = spare, power, 2.0 * log_scale
        if squaring % 3 == 0 or squaring == squarings:
            # The largest eigenvalue was at least rank^(-1/2): three squarings of it stay far from underflow.
            size = vector_norm(power).clamp_min(tiny)
            power, log_scale = power.div_(size), log_scale + size.log()
    order = 2.0 * (2.0**squarings + 1.0)
    trace = torch.dot(power.view(-1), gram.view(-1)).clamp_min(tiny)  # sum of sigma^order, but for the scales taken out
    norm = torch.exp((trace.log() + log_scale) / order) * (gram.diagonal().sum() > 0)
    if wide:
        torch.mm(power, matrix, out=dual)
    else:
        torch.mm(matrix, power, out=dual)
    return dual.mul_(norm / trace / scale), norm * scale
