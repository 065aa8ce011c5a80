"""Norms of matrices of fractions against a number, and linear algebra in fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from lipbridge.checking.network import Exact
from lipbridge.vocabulary import Norm


def norm_at_most(J: Exact, known: bool, v: Fraction, p: Norm, q: Norm) -> bool:
    """Whether the norm from l_p to l_q of ``J`` ``(m, n)`` is at most ``v``, for a cheap pair of norms.

    Args:
        J: the matrix, or if not ``known`` bounds of the magnitudes of its entries.
    """
    size = abs(J)
    if v < 0:
        return False
    if (p, q) == (2, 2):
        if known:
            return _semidefinite(v * v, J if J.shape[0] <= J.shape[1] else J.T)
        rows, columns = (max((sum(part) for part in each), default=0) for each in (size, size.T))
        return bool(rows * columns <= v * v or sum(entry * entry for entry in size.flat) <= v * v)
    if p == 1:
        return all(vector_at_most(column, v, q) for column in size.T)
    return all(vector_at_most(row, v, 1 if p == "inf" else 2) for row in size)


def vector_at_most(x: Sequence[Fraction] | Exact, v: Fraction, norm: Norm) -> bool:
    """Whether the norm of a vector is at most ``v``, which is not negative."""
    if norm == 2:
        return sum(entry * entry for entry in x) <= v * v
    if norm == 1:
        return sum(abs(entry) for entry in x) <= v
    return all(abs(entry) <= v for entry in x)


def _semidefinite(square: Fraction, J: Exact) -> bool:
    """Whether ``square I - J J'`` is positive semidefinite, by its L D L' factors."""
    M = [[-entry for entry in row] for row in (J @ J.T).tolist()]
    size = len(M)
    for i in range(size):
        M[i][i] += square
    for i in range(size):
        pivot = M[i][i]
        if pivot < 0:
            return False
        if pivot == 0:
            if any(M[j][i] != 0 for j in range(i + 1, size)):
                return False
            continue
        for j in range(i + 1, size):
            factor = M[j][i] / pivot
            if factor:
                for k in range(i + 1, size):
                    M[j][k] -= factor * M[i][k]
    return True


def only_dependence(rows: Sequence[Sequence[Fraction]]) -> list[Fraction] | None:
    """The multipliers with ``sum_i y_i rows_i = 0``, the last one 1 or those after it 0; None but for one dimension."""
    m = len(rows)
    table = [[row[k] for row in rows] for k in range(len(rows[0]))] if rows else []
    pivots: list[int] = []
    for column in range(m):
        top = len(pivots)
        at = next((i for i in range(top, len(table)) if table[i][column] != 0), None)
        if at is None:
            continue
        table[top], table[at] = table[at], table[top]
        scale = table[top][column]
        table[top] = [value / scale for value in table[top]]
        for i, row in enumerate(table):
            factor = row[column]
            if i != top and factor != 0:
                table[i] = [a - factor * b for a, b in zip(row, table[top], strict=True)]
        pivots.append(column)
    free = [column for column in range(m) if column not in pivots]
    if len(free) != 1:
        return None
    found = [Fraction(0)] * m
    found[free[0]] = Fraction(1)
    for i, column in enumerate(pivots):
        found[column] = -table[i][free[0]]
    return found


__all__ = ["norm_at_most", "only_dependence", "vector_at_most"]
