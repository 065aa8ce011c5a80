"""Parts of the tree: for every unit a range of its pieces, and what is known of the cells that it stands for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lipbridge.branch_and_bound.cells import Array


@dataclass(eq=False)
class Part:
    """Pieces ``low`` to ``high`` ``(U,)`` int16 of the units, and what is known there.

    Attributes:
        uppers: proved upper bounds of the parts of the norm.
        domain: the number of the ball.
        bounding: ``(2, U)`` bool: which ends of ranges, lower and upper, were split off; the others are consequences.
        points: ``(count, N)``: coordinates inside the cell; None if there is none that is known.
        branch: the unit whose range is halved next.
        multipliers: of parts of the norm, by their number: for the units ``(U,)`` and the inputs ``(n,)``, float32.
    """

    low: Array
    high: Array
    uppers: Array
    domain: int
    bounding: Array
    points: Array | None = None
    branch: int = -1
    multipliers: dict[int, tuple[Array, Array]] = field(default_factory=lambda: {})

    @property
    def upper(self) -> float:
        """The largest of the upper bounds."""
        return float(self.uppers.max())

    def halves(self, unit: int) -> tuple[Part, Part]:
        """The two halves of a unit's range, which cover the part."""
        middle = (int(self.low[unit]) + int(self.high[unit])) // 2
        return self.cut(unit, 1, middle), self.cut(unit, 0, middle + 1)

    def cut(self, unit: int, side: int, piece: int) -> Part:
        """The part up to a piece of a unit (``side`` 1), or from it on (0)."""
        low, high, bounding = self.low.copy(), self.high.copy(), self.bounding.copy()
        (high if side else low)[unit] = piece
        bounding[side, unit] = True
        return replace(self, low=low, high=high, uppers=self.uppers.copy(), bounding=bounding)


def stacked(parts: list[Part]) -> tuple[Tensor, Tensor]:
    """Pieces ``low`` and ``high``, ``(k, U)`` int64."""
    low, high = (np.stack([getattr(part, name) for part in parts]) for name in ("low", "high"))
    return torch.as_tensor(low, dtype=torch.int64), torch.as_tensor(high, dtype=torch.int64)


__all__ = ["Part", "stacked"]
