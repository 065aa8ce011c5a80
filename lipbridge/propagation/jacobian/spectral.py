"""Proved spectral norms of a batch of matrices, on any device and without looking at a value.

For G = X X' and any square V with ``|V'V - I| <= d < 1``: every vector is V w, so the largest eigenvalue of G is at
most that of ``V' G V`` over 1 - d, and that of a symmetric matrix at most its largest row sum (Gershgorin). With
computed eigenvectors for V nothing is lost but rounding, and nothing is assumed of how they were computed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge.activations.slopes import WIDER
from lipbridge.linalg import eigenpairs
from lipbridge.propagation.rules import norm_up
from lipbridge.rounding.scalars import FLOOR, gamma


def spectral_norms_up(X: Tensor) -> Tensor:
    """``(k,)``: upper bounds of the largest singular values of ``(k, m, n)`` float64; infinite where none is found.

    Within about 1e-12, relatively, for up to some hundred rows or columns.

    Law: never below the exact largest singular value.
    """
    if X.shape[1] > X.shape[2]:
        X = X.mT
    m, n = X.shape[1:]
    if m == 1:
        return norm_up(X.abs().squeeze(1), 2).nan_to_num(math.inf, math.inf)
    largest = X.abs().amax((1, 2))
    finite = torch.isfinite(largest)
    scale = torch.where(finite & (largest > 0), largest, 1.0)
    # The quotients are rounded: half an ulp of each, so of the norm of magnitudes.
    X = torch.where(finite[:, None, None], X / scale[:, None, None], 0.0)
    size = norm_up(X.abs().flatten(1), 2)
    G = X @ X.mT
    G = 0.5 * (G + G.mT)
    lost = (4.0 * gamma(n + 16)) * size.square() + (n * m) * FLOOR
    V = eigenpairs(G)[1]
    eye = torch.eye(m, dtype=X.dtype, device=X.device)
    v = norm_up(V.abs().flatten(1), 2)
    rounding = 4.0 * gamma(2 * m + 16) * v.square()
    off = norm_up((V.mT @ V - eye).abs().flatten(1), 2) + rounding
    H = V.mT @ (G @ V)
    g = norm_up(G.abs().flatten(1), 2)
    top = norm_up(H.abs(), 1).amax(1) + rounding * g
    eigenvalue = top / (1.0 - off) * (1.0 + 8.0 * WIDER) + lost
    root = eigenvalue.sqrt() * (1.0 + 4.0 * WIDER) + WIDER * size + FLOOR
    found = root * scale * (1.0 + 4.0 * WIDER) + FLOOR
    found = torch.where(finite & (off < 0.5), found, math.inf).nan_to_num(math.inf, math.inf)
    return torch.where(largest == 0, 0.0, found)


__all__ = ["spectral_norms_up"]
