"""The largest singular value of a linear operator that is given by its action: restarted Lanczos."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipbridge.linalg import eigenpairs, vector_norm

#: Vectors that are held between restarts, those kept over a restart, and restarts at most.
STEPS, KEPT, RESTARTS = 32, 8, 400


@torch.no_grad()
def largest_singular_value(
    apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = 1e-6
) -> Tensor:
    """The norm of A from l_2 to l_2, from below, in the dtype of ``start``, as a tensor without axes.

    Lanczos on A'A with full orthogonalisation, restarted from its leading vectors ("thick restart", Wu and Simon 2000)
    until the residual of the eigenvalue is ``tolerance`` of it: the value is then within about tolerance^2 over the
    relative gap of the spectrum, and at worst within tolerance / 2 of a singular value.

    Args:
        apply: x -> A x, on tensors of ``start``'s shape.
        adjoint: y -> A'y.
        start: a vector with a share of the leading one, as a random vector has.

    Law: never above the norm but by rounding.
    """
    basis, images = [start / vector_norm(start)], list[Tensor]()
    value = start.new_zeros(())
    for _ in range(RESTARTS):
        while len(images) < len(basis):
            images.append(adjoint(apply(basis[-1])))
            fresh = _orthogonal_part(images[-1], basis) if len(basis) <= STEPS else None
            if fresh is not None:
                basis.append(fresh)
        Q, AQ = (torch.stack([v.reshape(-1) for v in vectors]) for vectors in (basis, images))
        small = Q @ AQ.T
        values, vectors = eigenpairs((small + small.T) / 2)
        value = values[-1].clamp_min(0)
        leading = vectors[:, -KEPT:].T.flip(0)
        Q, AQ = leading @ Q, leading @ AQ
        residual = AQ[0] - values[-1] * Q[0]
        fresh = _orthogonal_part(residual, list(Q))
        if fresh is None or bool(vector_norm(residual) <= tolerance * value):
            break
        basis, images = ([row.reshape(start.shape) for row in rows] for rows in (Q, AQ))
        basis.append(fresh.reshape(start.shape))
    return value.sqrt()


def _orthogonal_part(vector: Tensor, basis: list[Tensor]) -> Tensor | None:
    """The unit vector along what the basis does not hold of a vector; None if that is rounding alone."""
    rest = vector
    for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
        for other in basis:
            rest = rest - (other * rest).sum() * other
    size = vector_norm(rest)
    return rest / size if bool(size > 1e-14 * vector_norm(vector)) else None
