"""Whether the norm of a rational matrix is above a double: exactly, without a root and without rounding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipbridge.vocabulary import Norm, dual
from tests.support.exact.rationals import Ints, Rationals, aligned


def vector_exceeds(x: Rationals, bound: float, norm: Norm) -> bool:
    """Whether ``||x||_norm > bound``."""
    return _largest_row(x.reshape(1, -1), bound, norm) > 0


def matrix_exceeds(J: Rationals, bound: float, p: Norm, q: Norm) -> bool:
    """Whether ``sup ||J x||_q / ||x||_p > bound``, for 1 -> q, p -> inf and 2 -> 2."""
    return not math.isinf(bound) and compared(J, bound, p, q) > 0


def compared(J: Rationals, bound: float, p: Norm, q: Norm) -> int:
    """The sign of ``sup ||J x||_q / ||x||_p - bound``, for a finite bound of at least zero."""
    if p == 1:
        return _largest_row(Rationals(J.ints.T, J.unit), bound, q)
    if q == "inf":
        return _largest_row(J, bound, dual(p))
    assert (p, q) == (2, 2)
    A, limit, _ = aligned(J.reduced(), bound)
    square = limit * limit
    if int((A * A).sum()) < square:  # the Frobenius norm is no smaller
        return -1
    G: Any = np.dot(A.T, A) if A.shape[1] <= A.shape[0] else np.dot(A, A.T)
    return -definiteness(square * np.eye(len(G), dtype=object) - G)


def _largest_row(rows: Rationals, bound: float, norm: Norm) -> int:
    """The sign of the largest row's norm less the bound."""
    sizes, limit, _ = aligned(rows, bound)
    sizes = abs(sizes)
    if norm == 2:
        found, limit = (sizes * sizes).sum(axis=1), limit * limit
    else:
        found = sizes.sum(axis=1) if norm == 1 else sizes.max(axis=1, initial=0)
    largest = max(found)
    return (largest > limit) - (largest < limit)


def definiteness(matrix: Ints) -> int:
    """The sign of a symmetric matrix's smallest eigenvalue, by elimination without fractions (Bareiss).

    Each pivot is a ratio of minors of the matrix, so its sign is that of LDL's.
    """
    A, before = matrix, 1
    while len(A):
        diagonal = A.diagonal()
        if any(value < 0 for value in diagonal):
            return -1
        pivot = int(max(range(len(A)), key=lambda i: diagonal[i]))
        d = A[pivot, pivot]
        if d == 0:  # a zero diagonal needs a zero matrix
            return -1 if any(A.flat) else 0
        rest = [i for i in range(len(A)) if i != pivot]
        column = A[rest, pivot]
        A = (d * A[np.ix_(rest, rest)] - np.outer(column, column)) // before
        before = d
    return 1
