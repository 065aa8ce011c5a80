"""LipschitzClaim: a bound of the Lipschitz constant as properties of a pair of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge import checks
from lipbridge.errors import InvalidArgument
from lipbridge.lowering.twin import signs
from lipbridge.problem.property import Case, Property
from lipbridge.vocabulary import Norm, as_norm


@dataclass(frozen=True)
class LipschitzClaim:
    """``|f(x) - f(y)| <= L |x - y|`` for all x in a box and y with ``nearest <= |x - y|_inf <= farthest``.

    A pair that is nearer is not asked about: where all are equal no strict inequality can be told from an equality.

    Attributes:
        constant: L, above 0.
        norm: inf or 1, of inputs and outputs.
        low, high: of each number of x.
        nearest, farthest: distances of x and y in l_inf.

    Raises:
        InvalidArgument: for another norm, or ends in the wrong order.
    """

    constant: float
    norm: Norm
    low: float
    high: float
    nearest: float
    farthest: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", as_norm(self.norm))
        if self.norm == 2:
            raise InvalidArgument("norm", "be 1 or inf: l_2 is not piecewise linear", self.norm)
        for name in ("constant", "nearest", "farthest"):
            object.__setattr__(self, name, checks.real(getattr(self, name), name, 0.0, above=True))
        for name in ("low", "high"):
            object.__setattr__(self, name, checks.number(getattr(self, name), name))
        if self.low > self.high or self.nearest > self.farthest:
            raise InvalidArgument("low, high, nearest, farthest", "be in order", (self.low, self.high))

    def properties(self, n: int, m: int) -> Iterator[tuple[str, Property]]:
        """By name, what :func:`lipbridge.lowering.twin.twin` must have, for n inputs and m outputs.

        The entry of ``d = y - x`` that is largest in l_inf, its sign, and the side of the outputs that breaks the bound
        are one case each; each is a property by itself, a box with comparisons of two outputs, or of one with zero.
        """
        for place in range(n):
            for sign, told in ((1.0, "up"), (-1.0, "down")):
                lower, upper = self._box(n, place, sign)
                for name, rows in self._broken(n, m, place, sign):
                    case = Case(lower, upper, rows, torch.zeros(len(rows)))
                    yield f"input{place}{told}_{name}", Property((case,))

    def _box(self, n: int, place: int, sign: float) -> tuple[Tensor, Tensor]:
        d_low, d_high = (torch.full((n,), end, dtype=torch.float64) for end in (-self.farthest, self.farthest))
        if sign > 0:
            d_low[place] = self.nearest
        else:
            d_high[place] = -self.nearest
        x = [torch.full((n,), end, dtype=torch.float64) for end in (self.low, self.high)]
        return torch.cat([x[0], d_low]), torch.cat([x[1], d_high])

    def _broken(self, n: int, m: int, place: int, sign: float) -> Iterator[tuple[str, Tensor]]:
        if self.norm == 1:
            for side in range(len(signs(m))):
                row = torch.zeros(1, 2**m, dtype=torch.float64)
                row[0, side] = -1.0
                yield f"side{side}", row
            return
        eye = torch.eye(2 * m + 2 * n, dtype=torch.float64)
        largest = 2 * m + place + (0 if sign > 0 else n)
        others = [2 * m + i for i in range(2 * n) if i % n != place]
        for side in range(2 * m):
            rows = [eye[largest] - eye[side], *(eye[i] - eye[largest] for i in others)]
            yield f"output{side % m}{'up' if side < m else 'down'}", torch.stack(rows)


__all__ = ["LipschitzClaim"]
