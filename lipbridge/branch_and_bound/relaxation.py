"""The Jacobians of a part of the tree: all units' slopes in intervals, and what is certain multiplied out.

With slopes ``c + r e`` for e in [-1, 1], unit by unit, and w = r e z what is uncertain of a unit's slope times its
argument's derivative z, elimination of all that is certain gives

    z = A w + B,   J = C w + D

with A strictly lower triangular in the layers. Units with one slope have r = 0 and are gone. So of all layers there is
only left what is not known, and the bounds of :mod:`absolute` and :mod:`spectral` see the products of known layers as
one matrix, which is where their tightness comes from.

Rounding: every number here and there is a sum over paths through the network, of products of weights and slopes. With
magnitudes in place of numbers and the largest slopes of all, those sums are computed once a network, entry by entry of
the Jacobian (:class:`Slack`); whatever is computed for a part of the tree is off by less than a small multiple of
2^-53, times the number of operations on a path, of that. Errors of weights and slopes are counted there too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.pieces import PieceTable
from lipbridge.propagation.rules import norm_up
from lipbridge.rounding.scalars import FLOOR, gamma
from lipbridge.vocabulary import Norm


@dataclass(frozen=True, eq=False)
class Resolved:
    """k parts of the tree: ``A (k, U, U)``, ``B (k, U, n)``, ``C (k, m, U)``, ``D (k, m, n)`` and ``r (k, U)``."""

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    r: Tensor

    @property
    def mT(self) -> Resolved:
        """Of the transposed Jacobians: the layers' order is reversed."""
        return Resolved(self.A.mT, self.C.mT, self.B.mT, self.D.mT, self.r)

    def rows(self, index: Tensor) -> Resolved:
        """Some of the parts."""
        return Resolved(self.A[index], self.B[index], self.C[index], self.D[index], self.r[index])

    def joined(self, other: Resolved) -> Resolved:
        """These parts and others."""
        return Resolved(*(torch.cat([getattr(self, f.name), getattr(other, f.name)]) for f in fields(Resolved)))


def resolve(
    cascade: Cascade, c: Tensor, r: Tensor, *, outputs: Tensor | None = None, inputs: Tensor | None = None
) -> Resolved:
    """Eliminate what is certain of slopes ``c + r e``.

    Args:
        cascade: the network.
        c, r: ``(k, U)`` float64, r not negative.
        outputs, inputs: ``(k,)`` int64: of one row, or one column, each.
    """
    k, U = len(c), cascade.units
    C, D, P = cascade.C[None], cascade.D[None], cascade.P[None]
    if outputs is not None:
        C, D = cascade.C[outputs][:, None], cascade.D[outputs][:, None]
    elif inputs is not None:
        P, D = cascade.P.T[inputs][:, :, None], cascade.D.T[inputs][:, :, None]
    found = torch.cat([cascade.A.expand(k, U, U), P.expand(k, -1, -1)], 2)
    for layer in cascade.layers[1:]:
        own = slice(layer.start, layer.stop)
        weights = cascade.A[own, : layer.start]
        if bool(weights.any()):
            found[:, own] += (weights * c[:, None, : layer.start]) @ found[:, : layer.start]
    out = torch.cat([C.expand(k, -1, -1), D.expand(k, -1, -1)], 2) + (C * c[:, None]) @ found
    return Resolved(found[..., :U], found[..., U:], out[..., :U], out[..., U:], r)


class Slack:
    """What rounding, and errors of weights and slopes, can add to any Jacobian of a network."""

    def __init__(self, cascade: Cascade, table: PieceTable) -> None:
        t, dt = table.largest, table.slope_error
        size, error = cascade.P.abs(), cascade.P_error.clone()
        A, A_error = cascade.A.abs(), cascade.A_error
        for layer in cascade.layers[1:]:
            own, before = slice(layer.start, layer.stop), slice(0, layer.start)
            size[own] += (A[own, before] * t[before]) @ size[before]
        for layer in cascade.layers[1:]:
            own, before = slice(layer.start, layer.stop), slice(0, layer.start)
            lost = t[before, None] * error[before] + dt[before, None] * (size[before] + error[before])
            error[own] += A[own, before] @ lost + A_error[own, before] @ (t[before, None] * size[before] + lost)
        lost = t[:, None] * error + dt[:, None] * (size + error)
        C, C_error = cascade.C.abs(), cascade.C_error
        self.size = cascade.D.abs() + C @ (t[:, None] * size)
        inexact = cascade.D_error + C @ lost + C_error @ (t[:, None] * size + lost)
        length = 4 * (len(cascade.layers) + 1) * (cascade.units + sum(cascade.D.shape) + 8)
        #: ``(m, n)``: an entry of a Jacobian is within this of what its relaxation encloses.
        self.entries = (inexact + 8.0 * gamma(length) * (self.size + inexact)) * (1.0 + 2.0**-20) + FLOOR

    def norm(self, p: Norm, q: Norm) -> float:
        """Upper bound of the norm of ``entries``, for a cheap pair of norms."""
        X = self.entries[None]
        if p == 1:
            return float(norm_up(X.mT, q).amax())
        rows = norm_up(X, 1 if p == "inf" else 2)
        return float(rows.amax()) if q == "inf" else float(norm_up(X.flatten(1), 2)[0])


__all__ = ["Resolved", "Slack", "resolve"]
