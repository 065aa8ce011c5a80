"""The best points that a search has found, and what the best of them proves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.problem.bound import Witness
from lipbridge.problem.problem import Problem
from lipbridge.search.domain import Balls, Domain, joined
from lipbridge.search.witness import witness_value
from lipbridge.vocabulary import Quantity

#: Moves, relative to the natural step, that are tried when a point is on a kink.
NUDGES = (0.0, 1e-12, 1e-9, 1e-6)


@dataclass(frozen=True, eq=False)
class Pool:
    """The best points so far: points and directions ``(n, *input_shape)``, gains ``(n,)``, and where they may move."""

    x: Tensor
    v: Tensor
    value: Tensor
    domain: Domain

    def best(self, count: int) -> Pool:
        """The ``count`` rows of largest gain, in falling order."""
        return self.rows(self.value.topk(min(count, len(self.value))).indices)

    def rows(self, index: Tensor) -> Pool:
        """Some of the rows."""
        return Pool(self.x[index], self.v[index], self.value[index], self.domain.select(index))

    def repeated(self, times: int) -> Pool:
        """All rows, several times over."""
        return self.rows(torch.arange(len(self.value), device=self.value.device).repeat(times))

    def improved(self, x: Tensor, v: Tensor, value: Tensor) -> Pool:
        """Row by row the better one, without asking the device which."""
        better = (value > self.value).reshape(-1, *[1] * (x.ndim - 1))
        points, directions = torch.where(better, x, self.x), torch.where(better, v, self.v)
        return Pool(points, directions, torch.maximum(value, self.value), self.domain)

    def joined(self, other: Pool | None) -> Pool:
        """Both together."""
        if other is None:
            return self
        domain = joined(self.domain, other.domain)
        rows = [torch.cat(pair) for pair in ((self.x, other.x), (self.v, other.v), (self.value, other.value))]
        return Pool(rows[0], rows[1], rows[2], domain)


def settle(problem: Problem, pool: Pool) -> tuple[float, Witness | None]:
    """The best row of a pool that proves something, with what it proves; rows on a kink are moved off it."""
    pool = pool.best(len(pool.value))
    for row in range(len(pool.value)):
        for nudge in NUDGES:
            witness = _witness(problem, pool, row, nudge)
            try:
                return witness_value(problem, witness), witness
            except InvalidArgument:
                continue
    return 0.0, None


def _witness(problem: Problem, pool: Pool, row: int, nudge: float) -> Witness:
    x, domain = pool.x[row : row + 1], pool.domain.select(torch.tensor([row], device=pool.x.device))
    if problem.quantity is Quantity.DEVIATION and isinstance(domain, Balls):
        return Witness(torch.cat([domain.centers, x]))
    if nudge > 0:
        x = domain.project(x + nudge * domain.step_length(x) * torch.cos(1.0 + x + pool.v[row : row + 1]))
    return Witness(x, pool.v[row : row + 1])
