"""A mixed-integer linear program that grows, and what HiGHS says of it.

HiGHS' tolerances are absolute, and weights may be of any size: every variable is handed over in units of a power of two
near its largest value, every row and the objective with a largest coefficient near one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipbridge.processes import stdout_to_stderr

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
        status: of HiGHS, in its own words; ``optimal`` and ``timed_out`` are read from it.
        dual: no objective is above it, by the solver's account; infinite where it has none.
        primal: the objective of the best point; minus infinity without one.
        point: that point, or None.
        nodes: of the search tree.
    """

    status: str
    optimal: bool
    timed_out: bool
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

    def maximise(self, seconds: float, *, gap: float, seed: int = 0, least: float | None = None) -> Answer:
        """HiGHS' answer within about so many seconds of wall time, on one thread.

        Args:
            seconds: its time limit.
            gap: relative distance of primal and dual bound at which it stops.
            seed: of its random choices.
            least: only objectives of at least so much are looked for.
        """
        from scipy import sparse

        highspy: Any = import_module("highspy")
        lower, upper, whole = (np.concatenate(x) for x in (self.lower, self.upper, self.whole))
        unit = np.where(whole, 1.0, _power(np.maximum(np.abs(lower), np.abs(upper))))
        row, column, value = (np.concatenate(x) for x in zip(*self.entries, strict=True))
        shape = (self.height, self.size)
        matrix = sparse.csr_matrix((value * unit[column], (row, column)), shape=shape)
        least_row, most_row = (np.concatenate(x) for x in zip(*self.ends, strict=True))
        largest = np.zeros(self.height)
        np.maximum.at(largest, row, np.abs(value * unit[column]))
        weight = 1.0 / _power(largest)
        matrix = sparse.csc_matrix(sparse.diags(weight) @ matrix)
        cost = np.zeros(self.size)
        np.add.at(cost, self.objective.columns, self.objective.matrix[0])
        shift, cost = float(self.objective.constant[0]), cost * unit
        size = float(_power(np.array([max(np.abs(cost).max(initial=0.0), 0.0)]))[0])

        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = self.size, self.height
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost / size, lower / unit, upper / unit
        lp.row_lower_, lp.row_upper_ = least_row * weight, most_row * weight
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
        lp.sense_ = highspy.ObjSense.kMaximize
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if x else kinds.kContinuous for x in whole]

        with stdout_to_stderr():  # its first instance prints a line
            solver = highspy.Highs()
        for name, chosen in (
            ("output_flag", False),
            ("threads", 1),
            ("parallel", "off"),
            ("random_seed", seed % 2**31),
            ("time_limit", max(seconds, 1e-3)),
            ("mip_rel_gap", gap),
            ("mip_abs_gap", 1e-9),
            ("mip_feasibility_tolerance", TOLERANCE),
            ("primal_feasibility_tolerance", TOLERANCE),
            ("dual_feasibility_tolerance", TOLERANCE),
        ):
            solver.setOptionValue(name, chosen)
        solver.passModel(lp)
        solver.run()
        info, status = solver.getInfo(), solver.getModelStatus()
        point = np.array(solver.getSolution().col_value)
        feasible = highspy.SolutionStatus.kSolutionStatusFeasible
        found = len(point) == self.size and info.primal_solution_status == feasible
        mip = bool(whole.any())
        primal = info.objective_function_value * size + shift if found else -math.inf
        dual = info.mip_dual_bound * size + shift if mip else primal
        statuses = highspy.HighsModelStatus
        return Answer(
            status=str(solver.modelStatusToString(status)),
            optimal=status == statuses.kOptimal,
            timed_out=status == statuses.kTimeLimit,
            dual=dual if math.isfinite(dual) and (mip or status == statuses.kOptimal) else math.inf,
            primal=primal,
            point=point * unit if found else None,
            nodes=max(int(info.mip_node_count), 0),
        )


#: HiGHS' feasibility and integrality tolerances, in the units that it is handed.
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


__all__ = ["TOLERANCE", "Affine", "Answer", "Program", "Vector", "total"]
