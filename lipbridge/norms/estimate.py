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


@torch.no_grad()
def dual_matrix(matrix: Tensor, p: Norm = 2, q: Norm | None = None) -> Tensor:
    """A dual matrix D ``(m, n)`` of W for the norm p->q: of the Schatten norm of order 130 for 2->2, see ``gram``.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1.

    Law: ``<D, W>`` is the norm (for 2->2: the Schatten norm, at most rank^(1/130) above the spectral norm).
    """
    q = p if q is None else q
    require_cheap(p, q, "operator norm of a matrix")
    return gram_dual(matrix)[0] if (p, q) == (2, 2) else _extreme_dual(matrix, p, q)


def _extreme_dual(W: Tensor, p: Norm, q: Norm) -> Tensor:
    """The subgradient of the largest column or row norm: shared equally where several are largest."""
    if (p, q) == (1, "inf"):
        size = W.abs()
        return _shared(size, size.amax()) * W.sign()
    axis: int = -2 if p == 1 else -1
    order: Norm = 2 if 2 in (p, q) else 1
    lengths = vector_norm(W, order, dim=axis, keepdim=True)
    share = _shared(lengths, lengths.amax())
    if order == 1:
        return share * W.sign()
    return share * W / lengths.clamp_min(torch.finfo(W.dtype).tiny)


def _shared(sizes: Tensor, largest: Tensor) -> Tensor:
    mask = (sizes >= largest * (1.0 - 1e-6)).to(sizes.dtype)
    return mask / mask.sum()


def estimate_norm(matrix: Tensor, dual: Tensor) -> Tensor:
    """The differentiable estimate ``<D, W>``, with gradient D in W; in the dtype of the state, without axes."""
    return torch.dot(dual.reshape(-1), matrix.to(dual.dtype).reshape(-1))
