"""The functions of ``torch.linalg`` that we use, with the types that torch does not state for them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.vocabulary import Norm, exponent

_linalg = cast(Any, torch.linalg)


def vector_norm(x: Tensor, norm: Norm = 2, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    """Vector norm along ``dim`` (all of ``x`` if None)."""
    return cast(Tensor, _linalg.vector_norm(x, exponent(norm), dim=dim, keepdim=keepdim))


def spectral_norm(matrix: Tensor) -> Tensor:
    """Largest singular value of ``(..., m, n)``, by SVD; differentiable."""
    return cast(Tensor, _linalg.matrix_norm(matrix, 2))


def cholesky(matrix: Tensor) -> Tensor | None:
    """Lower Cholesky factor, or None if the factorisation broke down."""
    factor, info = cast(tuple[Tensor, Tensor], _linalg.cholesky_ex(matrix))
    return None if int(info) != 0 or not bool(torch.isfinite(factor).all()) else torch.tril(factor)


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, ascending.

    Raises:
        NumericalFailure: if they are not found, which NaN and infinity make them.
    """
    try:
        return cast(Tensor, _linalg.eigvalsh(matrix))
    except _linalg.LinAlgError:
        raise NumericalFailure("Eigenvalues were not found: numbers overflowed, or weights hold NaN.") from None


def eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, ascending, and orthonormal eigenvectors in columns."""
    return cast(tuple[Tensor, Tensor], _linalg.eigh(matrix))


def solve_triangular(lower: Tensor, right: Tensor) -> Tensor:
    """``lower^-1 right`` for a lower triangular matrix."""
    return cast(Tensor, _linalg.solve_triangular(lower, right, upper=False))
