"""Parts of the tree: a row of the Jacobian, a range of pieces for every unit, and what is known of the cells there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lipbridge.branch_and_bound.cells import Array

#: The row of a root, which stands for all rows; a branch that is not chosen yet.
ALL, NONE = -1, -1


@dataclass(eq=False)
class Part:
    """Pieces ``low`` to ``high``, ``(U,)`` int16, of the units, and what is known there.

    The norm is the largest of rows' norms. Where that is l_1, ``|a|_1`` is the largest ``s' a`` with all entries of s
    1 or -1, and some of these may be decided: ``signs`` of them, relative to each other, for s and -s are both meant.

    Attributes:
        row: the number of the row; all of them for a root.
        signs: ``(entries,)`` int8: 0 where both are meant.
        upper: a proved upper bound.
        domain: the number of the ball.
        bounding: ``(2, U)`` bool: which ends of ranges, lower and upper, were split off; the others are consequences.
        points: ``(count, N)``: coordinates inside the cell; None if there is none that is known.
        branch: the unit whose range is halved next, or U and the number of the sign that is decided next.
        multipliers: for the units ``(U,)`` and the entries ``(entries,)``, float32.
    """

    low: Array
    high: Array
    row: int
    signs: Array
    upper: float
    domain: int
    bounding: Array
    points: Array | None = None
    branch: int = NONE
    multipliers: tuple[Array, Array] | None = None

    def halves(self) -> tuple[Part, Part]:
        """The two halves of the range, or the two signs, of ``branch``: they cover the part."""
        units = len(self.low)
        if self.branch >= units:
            return self.signed(self.branch - units, 1), self.signed(self.branch - units, -1)
        middle = (int(self.low[self.branch]) + int(self.high[self.branch])) // 2
        return self.cut(self.branch, 1, middle), self.cut(self.branch, 0, middle + 1)

    def cut(self, unit: int, side: int, piece: int) -> Part:
        """The part up to a piece of a unit (``side`` 1), or from it on (0)."""
        low, high, bounding = self.low.copy(), self.high.copy(), self.bounding.copy()
        (high if side else low)[unit] = piece
        bounding[side, unit] = True
        return replace(self, low=low, high=high, bounding=bounding, branch=NONE)

    def signed(self, entry: int, sign: int) -> Part:
        """The part with one more sign; multipliers of merged entries leave the bound what it was."""
        signs = self.signs.copy()
        signs[entry] = sign
        multipliers = self.multipliers
        if multipliers is not None:
            T, mu = multipliers
            mu = mu.copy()
            anchor = int(np.flatnonzero(self.signs)[0]) if self.signs.any() else entry
            if anchor != entry:
                # (a + b)^2 / (v + w) <= a^2 / v + b^2 / w for the weights v = 1 / mu
                mu[min(anchor, entry)] = 1.0 / (1.0 / mu[anchor] + 1.0 / mu[entry])
            multipliers = T, mu
        return replace(self, signs=signs, branch=NONE, multipliers=multipliers)


def stacked(parts: list[Part]) -> tuple[Tensor, Tensor]:
    """Pieces ``low`` and ``high``, ``(k, U)`` int64."""
    low, high = (np.stack([getattr(part, name) for part in parts]) for name in ("low", "high"))
    return torch.as_tensor(low, dtype=torch.int64), torch.as_tensor(high, dtype=torch.int64)


def lines_of(parts: list[Part]) -> tuple[Tensor, Tensor]:
    """Rows ``(k,)`` int64 and signs ``(k, entries)`` float64."""
    signs = torch.as_tensor(np.stack([part.signs for part in parts]), dtype=torch.float64)
    return torch.tensor([part.row for part in parts], dtype=torch.int64), signs


__all__ = ["ALL", "NONE", "Part", "lines_of", "stacked"]
