"""Operator norms ``sup ||W x||_q / ||x||_p`` of matrices: the accurate value, differentiable, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument, NumericalFailure, UnsupportedProblem
from lipbridge.linalg import spectral_norm, torch_linalg, vector_norm
from lipbridge.vocabulary import Norm, as_norm

#: The pairs (p, q) whose matrix norm is computable in polynomial time by a closed form or an SVD.
CHEAP_PAIRS: tuple[tuple[Norm, Norm], ...] = (
    (1, 1),
    (1, 2),
    (1, "inf"),
    (2, 2),
    (2, "inf"),
    ("inf", "inf"),
)


def require_cheap(p: Norm, q: Norm, what: str) -> None:
    """Raise :class:`UnsupportedProblem` for inf->1, inf->2 and 2->1, saying why."""
    if (p, q) not in CHEAP_PAIRS:
        raise UnsupportedProblem(
            f"The {what} from l_{p} to l_{q} is NP-hard to compute (it holds binary quadratic programs), so it is not "
            f"offered. Use {p}->{p} or {q}->{q}; norms p->q with p <= q are cheap."
        )


def operator_norm(matrix: Tensor, p: Norm = 2, q: Norm | None = None) -> Tensor:
    """The operator norm of ``matrix`` ``(..., m, n)`` from l_p to l_q, in its dtype, on its device, differentiable.

    Accurate to rounding, but an estimate all the same: :func:`lipbridge.rigor.matrix.proved_operator_norm` gives the
    bound.

    Raises:
        InvalidArgument: for what is no matrix of floating point numbers, or no norm.
        UnsupportedProblem: for inf->1, inf->2 and 2->1.
        NumericalFailure: if an SVD fails, which NaN makes it.

    Law: equals the largest ``||W x||_q / ||x||_p`` over the unit ball's extreme points (or the SVD for 2->2).
    """
    words = "be a tensor (..., m, n) of floating point numbers"
    checks.instance(matrix, Tensor, "matrix", words)
    if matrix.ndim < 2 or not matrix.is_floating_point() or matrix.layout != torch.strided:
        raise InvalidArgument("matrix", words, f"{matrix.dtype} of shape {tuple(matrix.shape)}, {matrix.layout}")
    p = as_norm(p, "p")
    q = p if q is None else as_norm(q, "q")
    require_cheap(p, q, "operator norm of a matrix")
    if not matrix.shape[-1] or not matrix.shape[-2]:
        return matrix.new_zeros(matrix.shape[:-2])
    if (p, q) == (2, 2):
        try:
            return spectral_norm(matrix)
        except torch_linalg.LinAlgError:
            raise NumericalFailure("The matrix holds NaN or infinite entries.") from None
    if (p, q) == (1, "inf"):
        return matrix.abs().amax(dim=(-2, -1))
    axis = -2 if p == 1 else -1  # 1 -> q: columns in l_q; p -> inf: rows in the dual of l_p
    return vector_norm(matrix, 2 if 2 in (p, q) else 1, dim=axis).amax(dim=-1)
