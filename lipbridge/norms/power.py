"""Estimates of operator norms for training: warm-started, differentiable, without host synchronisation.

A power iteration approaches the spectral norm from below, so it serves the penalty, never a bound.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.linalg import vector_norm
from lipbridge.norms.matrix import operator_norm
from lipbridge.vocabulary import Norm


def initial_vector(columns: int, device: torch.device | str | None = None) -> Tensor:
    """A fixed unit vector ``(columns,)`` float32 to start a power iteration: every rank draws the same one."""
    phases = torch.arange(1, columns + 1, dtype=torch.float32, device=device)
    vector = torch.cos(phases * phases)  # no structure that a weight matrix would be orthogonal to
    return vector / vector_norm(vector)


def estimate_norm(matrix: Tensor, vector: Tensor, p: Norm = 2, q: Norm | None = None) -> tuple[Tensor, Tensor]:
    """A differentiable estimate of the operator norm and the state for the next call.

    For 2->2, one warm power step: u = W v / |W v|, v = W' u / |W' u|, sigma = u' W v, whose gradient in W is u v'.
    All other pairs are closed forms and leave the state as it is.

    Args:
        matrix: ``(m, n)``, any floating dtype, any device.
        vector: ``(n,)``, the right singular vector of the last call (:func:`initial_vector` at first).
        p: norm of the input space.
        q: norm of the output space, ``p`` if not given.

    Law: never above the true norm but by rounding; converges to it over calls with the same matrix.
    """
    q = p if q is None else q
    if (p, q) != (2, 2):
        return operator_norm(matrix, p, q), vector
    with torch.no_grad():
        u = _unit(matrix @ vector.to(matrix.dtype))
        v = _unit(matrix.T @ u)
    return torch.dot(u, matrix @ v), v


def _unit(vector: Tensor) -> Tensor:
    # A zero matrix gives a zero vector: the estimate is then zero, and so is its gradient.
    tiny = torch.finfo(vector.dtype).tiny
    return vector / vector_norm(vector).clamp_min(tiny)
