"""Operator norms ``sup ||W x||_q / ||x||_p`` of matrices: the accurate value, differentiable, on any device."""

from __future__ import annotations

from torch import Tensor

from lipbridge.errors import UnsupportedProblem
from lipbridge.linalg import spectral_norm, vector_norm
from lipbridge.vocabulary import Norm

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

    Accurate to rounding, but an estimate all the same: :func:`lipbridge.rigor.proved_operator_norm` gives the bound.

    Raises:
        UnsupportedProblem: for inf->1, inf->2 and 2->1.

    Law: equals the largest ``||W x||_q / ||x||_p`` over the unit ball's extreme points (or the SVD for 2->2).
    """
    q = p if q is None else q
    require_cheap(p, q, "operator norm of a matrix")
    if (p, q) == (2, 2):
        return spectral_norm(matrix)
    if (p, q) == (1, "inf"):
        return matrix.abs().amax(dim=(-2, -1))
    axis = -2 if p == 1 else -1  # 1 -> q: columns in l_q; p -> inf: rows in the dual of l_p
    return vector_norm(matrix, 2 if 2 in (p, q) else 1, dim=axis).amax(dim=-1)
