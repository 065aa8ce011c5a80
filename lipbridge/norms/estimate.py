"""Estimates of operator norms for training: differentiable, warm-started, without host synchronisation.

All but the power iteration share one form. A *dual matrix* D is kept as state, with ``<D, V> <= ||V||`` for every
matrix V, and the estimate is the inner product ``<D, W>``: linear in W, with gradient D. It is exact in the W where D
was computed and, by convexity, never above the norm elsewhere, so a D that is a few steps old still presses in a
direction of descent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.linalg import vector_norm
from lipbridge.norms.gram import gram_dual
from lipbridge.norms.matrix import require_cheap
from lipbridge.vocabulary import Norm


def estimate_by_power(matrix: Tensor, vector: Tensor) -> Tensor:
    """The estimate ``|W v|`` of the spectral norm, with gradient ``u v'`` for ``u = W v / |W v|``.

    Args:
        matrix: W, ``(m, n)``, any floating dtype, any device.
        vector: v, a unit vector ``(n,)``, kept current by :func:`lipbridge.norms.power_step`.

    Law: never above the spectral norm but by rounding.
    """
    return vector_norm(matrix @ vector.to(matrix.dtype))


def estimate_by_dual(matrix: Tensor, dual: Tensor) -> Tensor:
    """The estimate ``<D, W>``, with gradient D in W; in the dtype of the state, without axes."""
    return torch.dot(dual.reshape(-1), matrix.to(dual.dtype).reshape(-1))


#: The largest of n row sums is smoothed to their l_32 norm: at most n^(1/32) above it. The gradient of the largest
#: alone is so sparse that training does not get down.
SHARPNESS = 32


@torch.no_grad()
def dual_matrix(
    matrix: Tensor, p: Norm = 2, q: Norm | None = None, squarings: int = 6, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A dual matrix D ``(m, n)`` of W for the norm p->q, smoothed, and that norm.

    For 2->2 of the Schatten norm of order ``2 (2^squarings + 1)`` (see ``gram``); for the others, which are the
    largest of n lengths, of the l_32 norm of those lengths. D is written to ``out`` if that is given.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1.

    Law: ``<D, W>`` is the smoothed norm: never below the norm, above it by at most rank^(1/order) or n^(1/32).
    """
    q = p if q is None else q
    require_cheap(p, q, "operator norm of a matrix")
    if (p, q) == (2, 2):
        return gram_dual(matrix, squarings, out)
    dual = _extreme_dual(matrix, p, q)
    dual = dual if out is None else out.copy_(dual)
    return dual, estimate_by_dual(matrix, dual)


def _extreme_dual(W: Tensor, p: Norm, q: Norm) -> Tensor:
    """The gradient of the smoothed largest column or row norm."""
    tiny = torch.finfo(W.dtype).tiny
    if (p, q) == (1, "inf"):
        return _shares(W.abs(), dim=(-2, -1)) * W.sign()
    axis: int = -2 if p == 1 else -1
    order: Norm = 2 if 2 in (p, q) else 1
    lengths = vector_norm(W, order, dim=axis, keepdim=True)
    shares = _shares(lengths, dim=-1 if p == 1 else -2)
    return shares * (W.sign() if order == 1 else W / lengths.clamp_min(tiny))


def _shares(sizes: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The gradient of the l_32 norm of ``sizes``: large entries have a share, not the largest alone."""
    tiny = torch.finfo(sizes.dtype).tiny
    ratio = sizes / sizes.amax(dim=dim, keepdim=True).clamp_min(tiny)
    total = ratio.pow(SHARPNESS).sum(dim=dim, keepdim=True).clamp_min(tiny)
    return ratio.pow(SHARPNESS - 1) / total.pow((SHARPNESS - 1) / SHARPNESS)
