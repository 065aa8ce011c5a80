"""Power iteration: the warm-started estimate of the spectral norm, from below."""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge.linalg import vector_norm


def initial_vector(columns: int, device: torch.device | str | None = None) -> Tensor:
    """A fixed unit vector ``(columns,)`` float32 to start a power iteration: every process draws the same one."""
    phases = torch.arange(1, columns + 1, dtype=torch.float32, device=device)
    vector = torch.cos(phases * phases)  # no structure that a weight matrix would be orthogonal to
    return vector / vector_norm(vector)


@torch.no_grad()
def power_step(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """One warm step: ``u = W v / |W v|``, ``v = W' u / |W' u|``. Returns the unit vectors (u, v).

    Args:
        matrix: W, ``(m, n)``, any floating dtype, any device.
        vector: v of the last step, ``(n,)``; :func:`initial_vector` at first.

    Law: ``u' W v`` is never above the spectral norm but by rounding, and converges to it over steps.
    """
    u = _unit(matrix @ vector.to(matrix.dtype))
    return u, _unit(matrix.T @ u)


def _unit(vector: Tensor) -> Tensor:
    # A zero matrix gives a zero vector: the estimate is then zero, and so is its gradient.
    return vector / vector_norm(vector).clamp_min(torch.finfo(vector.dtype).tiny)
