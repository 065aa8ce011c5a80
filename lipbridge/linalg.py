"""What of ``torch.linalg`` we use, with the types that torch does not state for it."""

from __future__ import annotations

from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.vocabulary import Norm, exponent


class TorchLinalg(Protocol):
    """The functions, as torch documents them."""

    @property
    def LinAlgError(self) -> type[Exception]: ...
    def cholesky_ex(self, A: Tensor) -> tuple[Tensor, Tensor]: ...
    def eigh(self, A: Tensor) -> tuple[Tensor, Tensor]: ...
    def eigvalsh(self, A: Tensor) -> Tensor: ...
    def matrix_norm(self, A: Tensor, ord: float) -> Tensor: ...
    def pinv(self, A: Tensor) -> Tensor: ...
    def qr(self, A: Tensor, mode: Literal["reduced", "complete", "r"]) -> tuple[Tensor, Tensor]: ...
    def solve_triangular(self, A: Tensor, B: Tensor, *, upper: bool) -> Tensor: ...
    def vector_norm(self, x: Tensor, ord: float, dim: int | tuple[int, ...] | None, keepdim: bool) -> Tensor: ...


torch_linalg: TorchLinalg = cast(Any, torch.linalg)


def vector_norm(x: Tensor, norm: Norm = 2, dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Tensor:
    """Vector norm along ``dim`` (all of ``x`` if None)."""
    return torch_linalg.vector_norm(x, exponent(norm), dim=dim, keepdim=keepdim)


def spectral_norm(matrix: Tensor) -> Tensor:
    """Largest singular value of ``(..., m, n)``, by SVD; differentiable."""
    return torch_linalg.matrix_norm(matrix, 2)


def cholesky(matrix: Tensor) -> Tensor | None:
    """Lower Cholesky factor, or None if the factorisation broke down."""
    factor, info = torch_linalg.cholesky_ex(matrix)
    return None if int(info) != 0 or not bool(torch.isfinite(factor).all()) else torch.tril(factor)


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, ascending.

    Raises:
        NumericalFailure: if they are not found, which NaN and infinity make them.
    """
    try:
        return torch_linalg.eigvalsh(matrix)
    except torch_linalg.LinAlgError:
        raise NumericalFailure("Eigenvalues were not found: numbers overflowed, or weights hold NaN.") from None


def eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, ascending, and orthonormal eigenvectors in columns."""
    return torch_linalg.eigh(matrix)


def solve_triangular(lower: Tensor, right: Tensor) -> Tensor:
    """``lower^-1 right`` for a lower triangular matrix."""
    return torch_linalg.solve_triangular(lower, right, upper=False)
