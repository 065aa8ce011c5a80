"""A mixed-integer linear program that grows, and what a solver says of it.

Solvers' tolerances are absolute, and weights may be of any size: every variable is handed over in units of a power of
two near its largest value, every row and the objective with a largest coefficient near one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Affine:
    """``matrix @ v[columns] + constant`` of a program's variables v: ``(m, n)``, ``(n,)`` and ``(m,)``."""

    matrix: Vector
    columns: Vector
    constant: Vector

    @staticmethod
    def fixed(constant: Vector) -> Affine:
        """Numbers, of no variable."""
        return Affine(np.zeros((len(constant), 0)), np.zeros(0, dtype=np.int64), constant)

    @staticmethod
    def of(columns: Vector) -> Affine:
        """Variables themselves."""
        return Affine(np.eye(len(columns)), columns, np.zeros(len(columns)))

    @property
    def known(self) -> bool:
        """Whether no variable matters."""
        return not np.any(self.matrix)

    def image(self, matrix: Vector, shift: Vector | float = 0.0) -> Affine:
        """``matrix @ self + shift``."""
        return Affine(matrix @ self.matrix, self.columns, matrix @ self.constant + shift)

    def plus(self, other: Affine) -> Affine:
        """The sum, entry by entry."""
        matrix = np.concatenate([self.matrix, other.matrix], 1)
        return Affine(matrix, np.concatenate([self.columns, other.columns]), self.constant + other.constant)

    def take(self, rows: Vector) -> Affine:
        """Some entries."""
        return Affine(self.matrix[rows], self.columns, self.constant[rows])

    def times(self, factors: Vector) -> Affine:
        """Each entry times a number."""
        return Affine(factors[:, None] * self.matrix, self.columns, factors * self.constant)


@dataclass(frozen=True, eq=False)
class Answer:
    """What the solver said: nothing of it is proved.

    Attributes:
        status: of the solver, in its own words; ``optimal``, ``timed_out`` and ``infeasible`` are read from it.
        dual: no objective is above it, by the solver's account; infinite where it has none.
        primal: the objective of the best point; minus infinity without one.
        point: that point, or None.
        nodes: of the search tree.
    """

    status: str
    optimal: bool
    timed_out: bool
    infeasible: bool
    dual: float
    primal: float
    point: Vector | None
    nodes: int


class Program:
    """Variables, rows and an objective that is maximised."""

    def __init__(self) -> None:
        self.lower: list[Vector] = []
        self.upper: list[Vector] = []
        self.whole: list[Vector] = []
        self.entries: list[tuple[Vector, Vector, Vector]] = []  # row, column, value
        self.ends: list[tuple[Vector, Vector]] = []
        self.size = self.height = 0
        self.objective = Affine.fixed(np.zeros(1))

    def variables(self, lower: Vector, upper: Vector, *, whole: bool = False) -> Vector:
        """New variables between finite bounds; their columns."""
        start, self.size = self.size, self.size + len(lower)
        self.lower.append(lower)
        self.upper.append(upper)
        self.whole.append(np.full(len(lower), whole))
        return np.arange(start, self.size)

    def binaries(self, count: int) -> Vector:
        """New variables of 0 or 1."""
        return self.variables(np.zeros(count), np.ones(count), whole=True)

    def held(self, value: Affine, lower: Vector, upper: Vector) -> Affine:
        """The same numbers as variables of their own, between bounds, so that rows that use them stay short."""
        columns = self.variables(lower, upper)
        self.equal(Affine.of(columns), value)
        return Affine.of(columns)

    def equal(self, left: Affine, right: Affine) -> None:
        """Rows ``left = right``."""
        self._rows(left.plus(right.times(np.full(len(right.constant), -1.0))), 0.0)

    def at_most(self, left: Affine, right: Affine) -> None:
        """Rows ``left <= right``."""
        self._rows(left.plus(right.times(np.full(len(right.constant), -1.0))), -math.inf)

    def _rows(self, value: Affine, least: float) -> None:
        """``least <= value <= 0``."""
        row, column = np.nonzero(value.matrix)
        self.entries.append((row + self.height, value.columns[column], value.matrix[row, column]))
        self.ends.append((least - value.constant, -value.constant))
        self.height += len(value.constant)

    @property
    def nonzeros(self) -> int:
        """Entries of the matrix."""
        return sum(len(value) for _, _, value in self.entries)

    def scaled(self) -> Scaled:
        """In units of powers of two."""
        from scipy import sparse

        lower, upper, whole = (np.concatenate(x) for x in (self.lower, self.upper, self.whole))
        unit = np.where(whole, 1.0, _power(np.maximum(np.abs(lower), np.abs(upper))))
        row, column, value = (np.concatenate(x) for x in zip(*self.entries, strict=True))
        shape = (self.height, self.size)
        matrix = sparse.csr_matrix((value * unit[column], (row, column)), shape=shape)
        least_row, most_row = (np.concatenate(x) for x in zip(*self.ends, strict=True))
        largest = np.zeros(self.height)
        np.maximum.at(largest, row, np.abs(value * unit[column]))
        weight = 1.0 / _power(largest)
        cost = np.zeros(self.size)
        np.add.at(cost, self.objective.columns, self.objective.matrix[0])
        shift, cost = float(self.objective.constant[0]), cost * unit
        size = float(_power(np.array([max(np.abs(cost).max(initial=0.0), 0.0)]))[0])
        return Scaled(
            cost=cost / size,
            lower=lower / unit,
            upper=upper / unit,
            whole=whole,
            matrix=sparse.csc_matrix(sparse.diags(weight) @ matrix),
            least=least_row * weight,
            most=most_row * weight,
            unit=unit,
            size=size,
            shift=shift,
        )


@dataclass(frozen=True, eq=False)
class Scaled:
    """``maximise cost v`` for ``lower <= v <= upper``, some v whole, and ``least <= matrix v <= most``.

    The program's variables are ``unit v``, its objective is ``size cost v + shift``.
    """

    cost: Vector
    lower: Vector
    upper: Vector
    whole: Vector
    matrix: Any
    least: Vector
    most: Vector
    unit: Vector
    size: float
    shift: float

    def objective(self, value: float) -> float:
        """Of the program, from that of the scaled one."""
        return value * self.size + self.shift


#: The solvers' feasibility and integrality tolerances, in the units that they are handed.
TOLERANCE = 1e-9


def _power(size: Vector) -> Vector:
    """The powers of two near positive numbers; 1 for zero."""
    return np.where(size > 0, 2.0 ** np.round(np.log2(np.where(size > 0, size, 1.0))), 1.0)


def total(parts: Sequence[Affine]) -> Affine:
    """The sum of all entries of all parts: one entry."""
    found = Affine.fixed(np.zeros(1))
    for part in parts:
        found = found.plus(part.image(np.ones((1, len(part.constant)))))
    return found


__all__ = ["TOLERANCE", "Affine", "Answer", "Program", "Scaled", "Vector", "total"]
