"""The rows of cells: arguments of units as affine functions of coordinates, on parts of the tree."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.cells import Array
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.linalg import torch_linalg
from lipbridge.rounding.scalars import FLOOR, gamma


@dataclass(frozen=True, eq=False)
class Cell:
    """``{y : rows (y, 1) > 0}``: ``rows`` and their ``errors`` ``(m, N + 1)``.

    A row says that the argument of one of ``units`` is above (``signs`` 1) or below (-1) that of its ``kinks``, numbers
    from 1.
    """

    rows: Array
    errors: Array
    units: Array
    kinks: Array
    signs: Array

    def where(self, held: Array) -> Cell:
        """Some of the rows."""
        return Cell(*(getattr(self, f.name)[held] for f in fields(self)))

    def joined(self, other: Cell) -> Cell:
        """Both cells' rows."""
        return Cell(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


class Rows:
    """Arguments of a cascade's units in coordinates: x itself, or, everywhere, what the first units read of x.

    Where x has more entries than units read them, ``y = P x`` of these is taken for free: a cell without a point in y
    has none in x.

    Attributes:
        size: N, the number of coordinates.
        error: ``(U, N + 1)``: how far a computed coefficient may be off, for any pieces.
    """

    def __init__(self, cascade: Cascade, table: PieceTable, *, reduce: bool) -> None:
        self.cascade, self.table = cascade, table
        reading = cascade.P.abs().sum(1) + cascade.P_error.sum(1) > 0
        self.back: Tensor | None = None
        n = cascade.P.shape[1]
        P, P_error = cascade.P, cascade.P_error
        if reduce and int(reading.sum()) < n:
            places = reading.nonzero().flatten()
            self.back = torch_linalg.pinv(P[places])
            P = torch.zeros(cascade.units, len(places), dtype=torch.float64)
            P[places, torch.arange(len(places))] = 1.0
            P_error = torch.zeros_like(P)
        self.right = torch.cat([P, cascade.b[:, None]], 1)
        self.size = P.shape[1]
        self.last: Array = table.last.numpy()
        self.kinks: Array = table.kinks.numpy()
        self.kink_error: Array = table.kink_error.numpy()
        self.error: Array = self._errors(torch.cat([P_error, cascade.b_error[:, None]], 1)).numpy()

    def _errors(self, own: Tensor) -> Tensor:
        c, t = self.cascade, self.table
        size, error = self.right.abs(), own.clone()
        offset, lost_offset = t.offsets.abs().amax(1), t.offset_error
        A, A_error = c.A.abs(), c.A_error
        for layer in c.layers[1:]:
            s, before = slice(layer.start, layer.stop), slice(0, layer.start)
            values = t.largest[before, None] * size[before]
            lost = t.largest[before, None] * error[before] + t.slope_error[before, None] * (
                size[before] + error[before]
            )
            values[:, -1] += offset[before]
            lost[:, -1] += lost_offset[before]
            size[s] += A[s, before] @ values
            error[s] += A[s, before] @ lost + A_error[s, before] @ (values + lost)
        exact = size.new_zeros(len(size), dtype=torch.bool)
        for layer in c.layers:  # what reads no unit is as it was read
            s = slice(layer.start, layer.stop)
            exact[s] = ~(c.A[s, : layer.start].abs() + A_error[s, : layer.start]).any(1)
        rounding = 8.0 * gamma(2 * (len(c.layers) + 1) * (c.units + 8)) * (size + error)
        rounding = torch.where(size + error > 0, rounding + FLOOR, 0.0)
        return torch.where(exact[:, None], own, (error + rounding) * (1.0 + 2.0**-20))

    def arguments(self, low: Tensor, high: Tensor, middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients ``(k, U, N + 1)``, and which arguments ``(k, U)`` are affine with pieces low to high."""
        c, k, U = self.cascade, len(low), self.cascade.units
        found = torch.cat([c.A, self.right], 1).expand(k, U, U + self.size + 1).clone()
        known = low == high
        offset = torch.where(known, self.table.offsets.gather(1, low.T).T, 0.0)
        loose = radius + (~known).to(radius.dtype)  # one slope but several pieces: only the offset is unknown
        for layer in c.layers[1:]:
            own, before = slice(layer.start, layer.stop), slice(0, layer.start)
            found[:, own] += (c.A[own, before] * middle[:, None, before]) @ found[:, before]
            found[:, own, -1] += offset[:, before] @ c.A[own, before].T
        affine = (found[..., :U].abs() * loose[:, None]).sum(-1) == 0
        return found[..., U:], affine

    def cell(self, z: Array, affine: Array, low: Array, high: Array, bounding: Array) -> Cell:
        """The cell of one part.

        Args:
            z, affine: as :meth:`arguments` gives them.
            low, high: pieces ``(U,)``.
            bounding: ``(2, U)``: which lower and upper ends are asked for.
        """
        above = np.flatnonzero(affine & bounding[0] & (low > 0))
        under = np.flatnonzero(affine & bounding[1] & (high < self.last))
        units = np.concatenate([above, under])
        kinks = np.concatenate([low[above], high[under] + 1])
        found = self.sides(z, units, kinks, np.where(np.arange(len(units)) < len(above), 1.0, -1.0))
        held = np.any(np.abs(found.rows) > found.errors, axis=1)  # what may be constant is no constraint
        return found if held.all() else found.where(held)

    def sides(self, z: Array, units: Array, kinks: Array, sign: Array) -> Cell:
        """Above (``sign`` 1) or below (-1) some kinks of units."""
        at = self.kinks[units, kinks]
        rows = z[units]  # a copy
        errors = self.error[units]
        shifted = (at != 0) & (rows[:, -1] != 0)
        rows[:, -1] -= at
        errors[:, -1] += self.kink_error[units] + shifted * (2.0**-52) * abs(rows[:, -1])
        return Cell(rows * sign[:, None], errors, units, kinks, sign)

    def points(self, x: Tensor) -> Tensor:
        """Coordinates ``(k, N)`` as inputs ``(k, n)``."""
        return x if self.back is None else x @ self.back.T


__all__ = ["Cell", "Rows"]
