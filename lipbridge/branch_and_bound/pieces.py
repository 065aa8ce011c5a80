"""The pieces of all units of a network as tables, for tensors of piece numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.rounding.uncertain import known


class PieceTable:
    """Slopes, offsets and kinks of every unit's pieces, as doubles with errors.

    Attributes:
        last: ``(U,)`` int64: the number of the last piece.
        slopes, offsets: ``(U, most)``: of each piece.
        kinks: ``(U, most + 1)``: piece i lies between kink i and kink i + 1; infinite at the ends.
        slope_error, offset_error, kink_error: ``(U,)``: the largest error of a unit's numbers.
        largest: ``(U,)``: the largest magnitude of a slope.
    """

    def __init__(self, cascade: Cascade) -> None:
        U = cascade.units
        most = max((len(layer.function.slopes) for layer in cascade.layers), default=1)
        self.last = torch.zeros(U, dtype=torch.int64)
        self.slopes, self.offsets = (torch.zeros(U, most, dtype=torch.float64) for _ in range(2))
        self.kinks = torch.full((U, most + 1), math.inf, dtype=torch.float64)
        self.slope_error, self.offset_error, self.kink_error = (torch.zeros(U, dtype=torch.float64) for _ in range(3))
        for layer in cascade.layers:
            own, f = slice(layer.start, layer.stop), layer.function
            count = len(f.slopes)
            self.last[own] = count - 1
            self.kinks[own, 0] = -math.inf
            for numbers, table, error, first in (
                (f.slopes, self.slopes, self.slope_error, 0),
                (f.offsets, self.offsets, self.offset_error, 0),
                (f.kinks, self.kinks, self.kink_error, 1),
            ):
                for i, (value, lost) in enumerate(map(known, numbers), start=first):
                    table[own, i] = value
                    error[own] = error[own].clamp_min(lost)
            self.slopes[own, count:] = self.slopes[own, count - 1 : count]
        self.largest = self.slopes.abs().amax(1) if U else torch.zeros(0, dtype=torch.float64)
        self._cells = torch.arange(most)

    def hull(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and radius ``(k, U)`` of the slopes of pieces ``low`` to ``high``, both ``(k, U)`` int64.

        The radius is zero where all slopes are one; else it covers the hull.
        """
        inside = (self._cells >= low[..., None]) & (self._cells <= high[..., None])
        least = torch.where(inside, self.slopes, math.inf).amin(-1)
        most = torch.where(inside, self.slopes, -math.inf).amax(-1)
        middle = 0.5 * (least + most)
        radius = torch.maximum(most - middle, middle - least)
        exact = (middle - radius == least) & (middle + radius == most)
        return middle, torch.where(exact, radius, radius + 2.0**-50 * (least.abs() + most.abs()))

    def pattern(self, z: Tensor, layer: slice) -> Tensor:
        """The pieces that arguments ``(k, units)`` of a layer lie on."""
        return (z[..., None] > self.kinks[layer, 1:-1]).sum(-1)


__all__ = ["PieceTable"]
