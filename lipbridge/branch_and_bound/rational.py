"""Proofs that a cell is empty in exact arithmetic, for rows that depend on each other in a special way.

Units of one argument (hard tanh written as two ReLUs), comparators of a sorted group, and layers that repeat a
direction have rows whose dependence no interval can show: it holds exactly or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

from torch import Tensor

from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.cells import Array
from lipbridge.branch_and_bound.rows import Cell

Row = list[Fraction]


class Rational:
    """Arguments of units in fractions; ``right`` ``(U, N + 1)`` is how they read the coordinates and the constant."""

    def __init__(self, cascade: Cascade, right: Tensor) -> None:
        self.cascade, self.right = cascade, right
        self.functions = [layer.function for layer in cascade.layers for _ in range(layer.stop - layer.start)]

    def rows(self, low: Array, high: Array, units: Sequence[int]) -> dict[int, Row] | None:
        """The arguments of some units where all have pieces ``low`` to ``high``; None if one is not affine there."""
        found: dict[int, Row] = {}
        return found if all(self._row(int(unit), low, high, found) for unit in units) else None

    def _row(self, unit: int, low: Array, high: Array, found: dict[int, Row]) -> bool:
        if unit in found:
            return True
        row = [Fraction(value) for value in numbers(self.right[unit])]
        for j, weight in enumerate(numbers(self.cascade.A[unit])):
            if weight == 0.0:
                continue
            if low[j] != high[j] or not self._row(j, low, high, found):
                return False
            piece = int(low[j])
            slope, offset = self.functions[j].slopes[piece], self.functions[j].offsets[piece]
            for k, value in enumerate(found[j]):
                row[k] += Fraction(weight) * slope * value
            row[-1] += Fraction(weight) * offset
        found[unit] = row
        return True

    def empty(self, low: Array, high: Array, cell: Cell, cone: bool) -> bool:
        """Whether all rows of a cell, of arguments with pieces ``low`` to ``high`` ``(U,)``, cannot hold together.

        With ``cone`` the constant is no variable of its own. Of the rows only units, kinks and signs are read.
        """
        units, kinks, signs = (list(map(int, x)) for x in (cell.units, cell.kinks, cell.signs))
        rows = self.rows(low, high, units)
        if not rows:
            return False
        made: list[Row] = []
        for unit, kink, sign in zip(units, kinks, signs, strict=True):
            row = list(rows[unit])
            row[-1] -= self.functions[unit].kinks[kink - 1]
            made.append([sign * value for value in row])
        if any(not any(row) for row in made):
            return False
        if not cone:
            made.append([Fraction(0)] * (len(made[0]) - 1) + [Fraction(1)])
        return any(_signed(made[:end]) for end in (len(made), len(made) - (0 if cone else 1)))


def numbers(row: Tensor) -> list[float]:
    """The entries of a vector."""
    return cast(Any, row).tolist()


def _signed(rows: list[Row]) -> bool:
    """Whether the rows are dependent in one way alone, with multipliers of one sign."""
    m = len(rows)
    table = [[row[k] for row in rows] for k in range(len(rows[0]))] if rows else []
    pivots: list[int] = []
    for column in range(m):
        at = next((i for i in range(len(pivots), len(table)) if table[i][column] != 0), None)
        if at is None:
            continue
        top = len(pivots)
        table[top], table[at] = table[at], table[top]
        scale = table[top][column]
        table[top] = [value / scale for value in table[top]]
        for i in range(len(table)):
            factor = table[i][column]
            if i != top and factor != 0:
                table[i] = [a - factor * b for a, b in zip(table[i], table[top], strict=True)]
        pivots.append(column)
    free = [column for column in range(m) if column not in pivots]
    if len(free) != 1:
        return False
    return all(-table[i][free[0]] >= 0 for i in range(len(pivots)))


__all__ = ["Rational"]
