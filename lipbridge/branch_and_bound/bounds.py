"""Bounds of the norm of all Jacobians of parts of the tree, and the norm of a known one, for the cheap pairs of norms.

From l_p to l_q the norm of a matrix is the largest of its *parts*' norms: of its rows if q is inf, of its columns if p
is 1, and the matrix itself in l_2 (here *rows* stand for all three). Each has a tree of its own, so that one that
cannot be the largest is never looked at again. The l_1 norm of a row is the largest of its entries' sums with signs:
where some signs are decided, these entries are one, their sum.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lipbridge.branch_and_bound.absolute import entries, row_sums
from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.multipliers import Multiplied, Multipliers, multiplier_bounds
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.branch_and_bound.relaxation import Resolved, Slack, resolve
from lipbridge.norms.matrix import operator_norm
from lipbridge.propagation.jacobian.norms import magnitudes_up
from lipbridge.propagation.jacobian.spectral import spectral_norms_up
from lipbridge.propagation.rules import norm_up
from lipbridge.rounding.scalars import FLOOR
from lipbridge.vocabulary import Norm

#: More than the relative rounding of adding the slack, and of the plain norms' own sums where they have none.
ROUND = 1.0 + 2.0**-49
#: Inputs and units for which multipliers of rows are sought at most.
MOST_VARIABLES = 320


class Bounds:
    """What is bounded of a network's Jacobians: the norm from l_p to l_q."""

    def __init__(self, cascade: Cascade, table: PieceTable, p: Norm, q: Norm) -> None:
        self.cascade, self.table = cascade, table
        self.p: Norm = p
        self.q: Norm = q
        self.layers = [slice(layer.start, layer.stop) for layer in cascade.layers]
        self.by_columns = p == 1 and q != "inf"
        m, n = cascade.D.shape
        #: How many rows there are, and how many entries each has.
        self.rows = 1 if (p, q) == (2, 2) else n if self.by_columns else m
        self.entries = m if self.by_columns else n
        #: Whether signs of entries can be decided.
        self.signed = (p, q) in ((1, 1), ("inf", "inf")) and self.has_multipliers()
        self.slack = Slack(cascade, table).norm(p, q)

    def resolved(self, low: Tensor, high: Tensor) -> Resolved:
        """Pieces ``low`` to ``high``, ``(k, U)``, what is certain multiplied out; transposed for columns."""
        x = resolve(self.cascade, *self.table.hull(low, high))
        return x.mT if self.by_columns else x

    def row(self, low: Tensor, high: Tensor, rows: Tensor, signs: Tensor) -> Resolved:
        """The same for one of the rows ``(k,)`` each, with signs ``(k, entries)``, 0 where they are not decided."""
        hull = self.table.hull(low, high)
        if (self.p, self.q) == (2, 2):
            return resolve(self.cascade, *hull)
        if self.by_columns:
            return merged(resolve(self.cascade, *hull, inputs=rows).mT, signs)
        return merged(resolve(self.cascade, *hull, outputs=rows), signs)

    def cheap(self, x: Resolved) -> Tensor:
        """``(k, rows)`` upper bounds by linear bounds, or proved norms where nothing is uncertain."""
        layers = self.layers[::-1] if self.by_columns else self.layers
        if (self.p, self.q) == (2, 2):
            found = magnitudes_up(entries(x, layers), 2, 2)
            sure = (x.r == 0).all(1)
            if bool(sure.any()):
                found = found.clone()
                found[sure] = torch.minimum(found[sure], spectral_norms_up(x.D[sure]))
            found = found[:, None]
        elif (self.p, self.q) == (1, "inf"):
            found = entries(x, layers).amax(2)
        elif 2 in (self.p, self.q):
            found = norm_up(entries(x, layers), 2)
        else:
            found = row_sums(x, layers)[0]
        return self.outward(found)

    def outward(self, found: Tensor) -> Tensor:
        """With the slack; infinite where nothing is known."""
        return ((found + self.slack) * ROUND + FLOOR).nan_to_num(math.inf, math.inf)

    def has_multipliers(self) -> bool:
        """Whether :meth:`dear` knows more."""
        m, n = self.cascade.D.shape
        if (self.p, self.q) == (1, "inf"):
            return False
        weights = 0 if 2 in (self.p, self.q) else m if self.by_columns else n
        return self.cascade.units > 0 and weights + self.cascade.units <= MOST_VARIABLES

    def dear(self, x: Resolved, start: Multipliers | None) -> Multiplied:
        """``(k,)`` upper bounds by multipliers, of one row each."""
        found = multiplier_bounds(x, start, rows=2 not in (self.p, self.q))
        return replace(found, bounds=self.outward(found.bounds))

    def score(self, x: Resolved) -> Tensor:
        """``(k, U)``: about how much each unit's uncertainty adds; zero only where it adds nothing."""
        reach = x.r * x.C.abs().amax(1) * x.B.abs().sum(2)
        passed = x.r * self.reach(x)
        return torch.where(passed > 0, torch.maximum(reach, 1e-3 * passed), 0.0)

    def reach(self, x: Resolved) -> Tensor:
        """``(k, U)``: magnitudes on all paths through each unit."""
        layers = self.layers[::-1] if self.by_columns else self.layers
        out, into = x.C.abs().sum(1), x.B.abs().sum(2)
        for own in reversed(layers[:-1]):
            out[:, own] += torch.einsum("ku,kuv->kv", x.r * out, x.A[:, :, own].abs())
        for own in layers[1:]:
            into[:, own] += torch.einsum("kuv,kv->ku", x.A[:, own].abs(), x.r * into)
        return out * into

    def gains(self, pattern: Tensor) -> Tensor:
        """``(k,)``: the norms of the Jacobians with known pieces ``(k, U)``, estimates."""
        middle, _ = self.table.hull(pattern, pattern)
        return operator_norm(resolve(self.cascade, middle, torch.zeros_like(middle)).D, self.p, self.q)


def merged(x: Resolved, signs: Tensor) -> Resolved:
    """Rows ``x`` whose entries of decided signs are their sum, with these signs, at the place of the first of them."""
    decided = signs != 0
    first = torch.nn.functional.one_hot(decided.to(torch.int8).argmax(1), signs.shape[1]).to(signs.dtype)
    first = torch.where(decided.any(1, keepdim=True), first, 0.0)
    kept = (~decided).to(signs.dtype)

    def one(t: Tensor) -> Tensor:
        return t * kept[:, None] + (t @ signs[:, :, None]) * first[:, None]

    return Resolved(x.A, one(x.B), x.C, one(x.D), x.r)


__all__ = ["Bounds", "merged"]
