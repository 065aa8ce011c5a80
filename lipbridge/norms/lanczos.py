"""The largest singular value of a linear operator that is given by its action: restarted Lanczos."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lipbridge.linalg import eigenpairs, vector_norm

#: Steps between restarts, which bound the memory, and restarts at most.
STEPS, RESTARTS = 16, 400


@torch.no_grad()
def largest_singular_value(
    apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], start: Tensor, tolerance: float = 1e-9
) -> Tensor:
    """The norm of A from l_2 to l_2, from below, in the dtype of ``start``, as a tensor without axes.

    Lanczos on A'A with full orthogonalisation, restarted from its best vector until the residual of the eigenvalue is
    ``tolerance`` of it: the value is then within about tolerance^2 over the relative gap of the spectrum, and at worst
    within tolerance / 2 of a singular value.

    Args:
        apply: x -> A x, on tensors of ``start``'s shape.
        adjoint: y -> A'y.
        start: a vector with a share of the leading one, as a random vector has.

    Law: never above the norm but by rounding.
    """
    best = start / vector_norm(start)
    value = start.new_zeros(())
    for _ in range(RESTARTS):
        basis, images = [best], list[Tensor]()
        for _ in range(STEPS):
            images.append(adjoint(apply(basis[-1])))
            remainder = images[-1]
            for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
                for vector in basis:
                    remainder = remainder - (vector * remainder).sum() * vector
            size = vector_norm(remainder)
            if not bool(size > 1e-14 * vector_norm(images[-1])):
                break
            basis.append(remainder / size)
        small = torch.stack([torch.stack([(u * image).sum() for image in images]) for u in basis[: len(images)]])
        values, vectors = eigenpairs((small + small.T) / 2)
        leading = vectors[:, -1]
        best = _combine(leading, basis)
        residual = vector_norm(_combine(leading, images) - values[-1] * best)
        best, value = best / vector_norm(best), values[-1].clamp_min(0)
        if bool(residual <= tolerance * value):
            break
    return value.sqrt()


def _combine(coefficients: Tensor, vectors: list[Tensor]) -> Tensor:
    return torch.stack([c * v for c, v in zip(coefficients, vectors, strict=False)]).sum(0)
