"""Which parts of the tree are empty, and which ends of units' ranges are: points in cells, or proofs of emptiness.

Only arguments that are affine on a part bound its cell. A unit whose argument keeps on one side of a kink all over the
cell loses the pieces beyond it (it is *folded*): that is a split one of whose halves is empty, proved in the same way.
Most units are seen to have points on both sides: of the cell's known points, and where lines through one of them leave
the cell. Non-negative least squares are for the rest, and their proofs are checked together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.cells import (
    Array,
    Basis,
    Domain,
    Empty,
    basis_of,
    combination,
    dependent,
    given,
    look,
    size_in,
)
from lipbridge.branch_and_bound.parts import Part
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.branch_and_bound.rational import Rational
from lipbridge.branch_and_bound.rows import Cell, Rows

#: Coordinates of cells that are looked at, at most.
MOST_COORDINATES = 128
#: Lines through a cell, and points of it that are kept.
LINES, POINTS = 16, 40
#: Points are inside a cell by this, relatively.
INSIDE = 1e-9
#: Lines that do not leave a cell end at so many times the size of their first point.
FAR = 1e3


@dataclass(frozen=True, eq=False)
class _End:
    """A piece at an end of a unit's range, the lowest (``side`` 1) or the highest (0), that looks empty on a part.

    ``multipliers`` are of the rows of ``cell``, the part's with the end's own; ``basis`` is to prove it.
    """

    part: int
    unit: int
    side: int
    piece: int
    cell: Cell
    multipliers: Array
    basis: Basis | None = None
    proved: bool = False


class Feasibility:
    """Looks at the cells of a network's parts, on some domains; counts what it finds."""

    def __init__(self, cascade: Cascade, table: PieceTable, domains: list[Domain]) -> None:
        self.cascade, self.table = cascade, table
        self.bounded = domains[0].center is not None
        self.rows = Rows(cascade, table, reduce=not self.bounded)
        self.domains = domains if self.bounded else [Domain(self.rows.size)]
        self.fractions = Rational(cascade, self.rows.right)
        offsets = [o for layer in cascade.layers for o in (*layer.function.offsets, *layer.function.kinks)]
        self.biased = bool(cascade.b.any() or cascade.b_error.any()) or any(offsets)
        self.looks = self.rows.size <= MOST_COORDINATES
        draw = torch.Generator().manual_seed(0)
        lines = torch.randn(LINES, self.rows.size, generator=draw, dtype=torch.float64).numpy()
        self.lines: Array = lines / np.maximum(np.linalg.norm(lines, axis=1, keepdims=True), 2.0**-500)
        self.empty = self.unproved = self.folded = 0
        self.began, self.in_fractions = time.perf_counter(), 0.0

    def inhabited(self, parts: list[Part], z: Array, affine: Array) -> list[int]:
        """The places of parts whose cells are not proved empty; they have points if one was found."""
        if not self.looks:
            return list(range(len(parts)))
        found: list[int] = []
        for i, part in enumerate(parts):
            cell = self.cell(part, z[i], affine[i])
            if part.points is not None:
                part.points = inside(cell, part.points)
            if part.points is None:
                answer = look(self.domains[part.domain], cell.rows, cell.errors)
                if isinstance(answer, Empty):
                    if answer.proved or self.rational(part, cell, answer.multipliers):
                        self.empty += 1
                        continue
                    self.unproved += 1
                elif answer is not None:
                    part.points = answer[None]
            found.append(i)
        return found

    def fold(self, parts: list[Part], z: Array, affine: Array, of_use: Array) -> list[int]:
        """Take an empty piece off either end of the ranges of units ``of_use`` ``(k, U)``, where that is proved.

        Returns the places of the parts that had some.
        """
        ends = [end for i, part in enumerate(parts) for end in self.empty_ends(i, part, z[i], affine[i], of_use[i])]
        found: set[int] = set()
        for end, sure in zip(ends, self.proved(parts, ends), strict=True):
            part = parts[end.part]
            if not sure:
                self.unproved += 1
            elif part.low[end.unit] < part.high[end.unit]:
                (part.low if end.side else part.high)[end.unit] += 1 if end.side else -1
                self.folded += 1
                found.add(end.part)
        return sorted(found)

    def proved(self, parts: list[Part], ends: list[_End]) -> list[bool]:
        """Which ends are empty after rounding: those of one shape at once, the others in fractions."""
        found = [end.proved for end in ends]
        shapes: dict[tuple[int, ...], list[tuple[int, Basis]]] = {}
        for i, end in enumerate(ends):
            if end.basis is not None:
                shapes.setdefault(end.basis[0].shape, []).append((i, end.basis))
        for own in shapes.values():
            for (i, _), sure in zip(own, dependent([basis for _, basis in own]).tolist(), strict=True):
                found[i] = sure
        for i, end in enumerate(ends):
            if not found[i]:
                found[i] = self.rational(parts[end.part], end.cell, end.multipliers)
        return found

    def empty_ends(self, place: int, part: Part, z: Array, affine: Array, of_use: Array) -> list[_End]:
        """The ends of a part's ranges that look empty; its points are renewed."""
        units = np.flatnonzero(of_use & affine & (part.low < part.high))
        if not self.looks or part.points is None or not len(units):
            return []
        cell = self.cell(part, z, affine)
        if not self.bounded and len(cell.rows) < min(self.rows.size, len(units)):
            return []  # fewer rows than coordinates hardly ever leave a unit one sign
        points = np.concatenate([part.points, self.ways_out(self.domains[part.domain], cell, part.points[0])])
        rare: list[Array] = []
        sides = self.rows.sides(
            z,
            np.concatenate([units, units]),
            np.concatenate([part.low[units] + 1, part.high[units]]),
            np.repeat([-1.0, 1.0], len(units)),
        )
        seen = reached(sides, points) | ~(np.abs(sides.rows) > sides.errors).any(1)
        found: list[_End] = []
        for row in range(len(seen)):
            if seen[row]:
                continue
            side = int(row < len(units))
            answer = self.beyond(part, cell, sides.where(np.array([row])))
            if isinstance(answer, tuple):
                unit, piece = int(sides.units[row]), int(sides.kinks[row]) - side
                found.append(_End(place, unit, side, piece, *answer))
            elif answer is not None:
                rare.append(answer)
                seen |= reached(sides, answer[None])
        held = inside(cell, np.stack(rare)) if rare else None
        if held is not None:  # lines hit the others again
            part.points = np.concatenate([part.points[:1], held, part.points[1:]])[:POINTS]
        return found

    def beyond(self, part: Part, cell: Cell, own: Cell) -> tuple[Cell, Array, Basis | None, bool] | Array | None:
        """A point of a part's cell, about, where a row holds too; or what an :class:`_End` keeps; or neither."""
        domain, both = self.domains[part.domain], cell.joined(own)
        if domain.center is not None:
            answer = look(domain, both.rows, both.errors)
            return (both, answer.multipliers, None, answer.proved) if isinstance(answer, Empty) else answer
        rows, errors = both.rows, both.errors
        if self.biased:
            more = given(domain)
            rows, errors = np.concatenate([more, rows]), np.concatenate([0.0 * more, errors])
        else:
            rows, errors = rows[:, :-1], errors[:, :-1]
        y, way = combination(rows[:-1], -rows[-1])
        if way is None:
            multipliers = np.append(y, 1.0)
            return both, multipliers[-len(both.rows) :], basis_of(rows, errors, multipliers), False
        assert part.points is not None
        start = np.append(part.points[0], 1.0)[: rows.shape[1]]
        there, here = float(rows[-1] @ way), float(rows[-1] @ start)
        x = way + (0.5 * there / -here if here < 0.0 else 1.0) * start  # inside, not only on the cell's edge
        if not self.biased:
            return x
        return x[:-1] / x[-1] if x[-1] > 0.0 else None

    def cell(self, part: Part, z: Array, affine: Array) -> Cell:
        """A part's cell, by the ends that were split off."""
        return self.rows.cell(z, affine, part.low, part.high, part.bounding)

    def ways_out(self, domain: Domain, cell: Cell, x: Array) -> Array:
        """Points ``(2 LINES, N)`` near where lines through a point x of the cell leave it."""
        gap = cell.rows[:, :-1] @ x + cell.rows[:, -1]
        rate = self.lines @ cell.rows[:, :-1].T
        far = FAR * (1.0 + float(np.abs(x).max(initial=0.0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            up = np.where(rate < 0, gap / -rate, np.inf).min(1, initial=np.inf)
            down = np.where(rate > 0, gap / rate, np.inf).min(1, initial=np.inf)
        if domain.center is not None:
            left = max(domain.radius - size_in(domain, x - domain.center), 0.0)
            far = left / np.array([max(size_in(domain, d), 2.0**-500) for d in self.lines])
        up, down = np.minimum(up, far), np.minimum(down, far)
        return x + 0.999 * np.concatenate([up[:, None] * self.lines, -down[:, None] * self.lines])

    def rational(self, part: Part, cell: Cell, multipliers: Array) -> bool:
        """Whether a cell is proved empty in fractions; that is tried for a part of the time only."""
        small = self.cascade.units <= 400 and self.rows.size <= 24 and self.cascade.exact
        now = time.perf_counter()
        if not small or self.in_fractions > 2.0 + 0.2 * (now - self.began):
            return False
        held = multipliers > 1e-11 * multipliers.max(initial=0.0)
        cone = not self.bounded and not self.biased
        found = self.fractions.empty(part.low, part.high, cell.where(held), cone)
        self.in_fractions += time.perf_counter() - now
        return found


def reached(cell: Cell, points: Array) -> Array:
    """Which of a cell's rows ``(m,)`` hold clearly at one of some points."""
    gap = points @ cell.rows[:, :-1].T + cell.rows[:, -1]
    room = INSIDE * (np.abs(points) @ np.abs(cell.rows[:, :-1]).T + np.abs(cell.rows[:, -1]))
    return np.any(gap > room, axis=0)


def inside(cell: Cell, points: Array) -> Array | None:
    """Those of some points of the domain that are in a cell, clearly; None if there are none."""
    gap = points @ cell.rows[:, :-1].T + cell.rows[:, -1]
    room = INSIDE * (np.abs(points) @ np.abs(cell.rows[:, :-1]).T + np.abs(cell.rows[:, -1]))
    held = (gap > room).all(1)
    return points[held] if held.any() else None


__all__ = ["Feasibility"]
