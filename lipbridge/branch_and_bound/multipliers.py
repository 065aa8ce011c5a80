"""Upper bounds of norms of Jacobians by one multiplier for each uncertain unit.

With ``z = A w + B x``, ``J x = C w + D x`` and ``w = r e z``, |e| <= 1: for all T >= 0, mu > 0 and g with

    M = diag(g I, T) - [D; rB] diag(mu) [D; rB]' - [C; rA] diag(T) [C; rA]'  positive semidefinite

every Jacobian obeys ``|diag(mu)^(1/2) J' u|_2 <= sqrt(g) |u|_2`` (the S-procedure on the transposed Jacobian). For
mu = 1 that is its l_2 norm: LipSDP of Fazlyab et al. 2019 with each unit's own slopes. For one output it bounds the l_1
norm of its row by ``sqrt(g sum 1/mu)``, and nothing is lost there when all slopes are known.

It is linear in g, T and mu: some of Newton's steps on a barrier come near the least bound, for a batch at once, and
begin where the parent's ended. Whatever they find, M is proved to be positive semidefinite by a Cholesky factor and its
residual.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.branch_and_bound.relaxation import Resolved
from lipbridge.linalg import torch_linalg
from lipbridge.propagation.rules import norm_up
from lipbridge.rounding.scalars import gamma

#: Relative gaps of the barrier from step to step.
FRESH = (1.0, 1.0, 0.7, 0.5, 0.5, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.03, 0.03, 0.01, 0.003, 0.003)
WARM = (0.3, 0.2, 0.1, 0.1, 0.05, 0.03, 0.01, 0.003)
#: Halvings of a step until it counts as none.
TRIES = 7
#: How much more than the estimate is tried to be proved.
ROOM = (1e-9, 1e-6, 1e-3)


@dataclass(frozen=True, eq=False)
class Multipliers:
    """``T (k, U)`` for the units and ``mu (k, n)`` for the inputs; T is zero where a unit has none."""

    T: Tensor
    mu: Tensor


@dataclass(frozen=True, eq=False)
class Multiplied:
    """Bounds ``(k,)``, infinite where none is proved, the multipliers, and what each unit's uncertainty adds.

    ``shares`` ``(k, U)``, estimates: by how much the bound falls, both relatively, with a unit's r; ``entries``
    ``(k, n)``: for rows, with the freedom of an entry's sign.
    """

    bounds: Tensor
    multipliers: Multipliers
    shares: Tensor
    entries: Tensor


class System:
    """M's parts for k Jacobians with at most F uncertain units, and the variables of the barrier.

    The variables v are those of the diagonal (g, or mu for rows) and T; ``M = M0 + sum_i v_i (a_i a_i' - b_i b_i')``
    with the columns a of ``plus`` and b of ``minus``.
    """

    def __init__(self, x: Resolved, rows: bool) -> None:
        k, m, U = x.C.shape
        held = (x.r > 0).sum(1)
        F = int(held.max())
        order = torch.argsort((x.r > 0).to(torch.int8), dim=1, descending=True, stable=True)[:, :F]
        self.places = order.sort(1).values  # in the order of the units, so that A stays triangular
        at = self.places[:, :, None]
        r = x.r.gather(1, self.places)
        A = x.A.gather(1, at.expand(k, F, U)).gather(2, self.places[:, None].expand(k, F, F))
        B = x.B.gather(1, at.expand(k, F, x.B.shape[2]))
        C = x.C.gather(2, self.places[:, None].expand(k, m, F))
        self.m, self.F, self.n, self.r, self.rows = m, F, x.D.shape[2], r, rows
        self.K = torch.cat([C, r[:, :, None] * A], 1)
        self.H = torch.cat([x.D, r[:, :, None] * B], 1)
        self.G = self.H @ self.H.mT
        #: Entries that are not zero whatever the units do.
        self.held = (self.H != 0).any(1)

    def weights(self, mu: Tensor) -> Tensor:
        """``1 / mu`` of the entries that count."""
        return torch.where(self.held, 1.0 / mu, 0.0)

    def total(self, mu: Tensor) -> Tensor:
        """Their sum, ``(k,)``."""
        return self.weights(mu).sum(1).clamp_min(2.0**-500)

    def matrix(self, g: Tensor, T: Tensor, mu: Tensor | None) -> Tensor:
        found = self.change(g, T, mu)
        return found - self.G if mu is None else found

    def change(self, g: Tensor, T: Tensor, mu: Tensor | None) -> Tensor:
        """By how much M grows with the variables."""
        found = -(self.K * T[:, None]) @ self.K.mT
        if mu is not None:
            found -= (self.H * mu[:, None]) @ self.H.mT
        found.diagonal(dim1=1, dim2=2).add_(torch.cat([g[:, None].expand(-1, self.m), T], 1))
        return found


def multiplier_bounds(x: Resolved, start: Multipliers | None, *, rows: bool) -> Multiplied:
    """Upper bounds but for the slack of ``x``.

    Args:
        x: k parts of the tree with an uncertain unit each; with one output each for ``rows``.
        start: multipliers to begin with.
        rows: bound the l_1 norm of each row rather than the l_2 norm of the matrix.
    """
    s = System(x, rows)
    T = None if start is None else start.T.gather(1, s.places)
    mu = None
    if rows:
        mu = _first_weights(s) if start is None else start.mu
    T = _inside(s, T, mu)
    g = 1.3 * _least(s, T, mu) + 2.0**-500
    if mu is not None:  # so that g is one
        mu, T = mu / g[:, None], T / g[:, None]
        g = torch.ones_like(g)
    M = s.matrix(g, T, mu)
    for gap in FRESH if start is None else WARM:
        g, T, mu, M = _newton(s, g, T, mu, M, gap)
    found = proved(s, T, mu)
    whole = torch.zeros_like(x.r).scatter(1, s.places, T)
    shares = torch.zeros_like(x.r).scatter(1, s.places, _shares(s, g, T, M))
    if mu is None:
        mu, entries = whole.new_ones(len(whole), s.n), whole.new_zeros(len(whole), s.n)
    else:
        entries = s.weights(mu) / s.total(mu)[:, None]
    return Multiplied(found, Multipliers(whole, mu), shares, entries)


def _shares(s: System, g: Tensor, T: Tensor, M: Tensor) -> Tensor:
    """Near the optimum the barrier's inverse P of M is the dual solution: d log g / d log r is 2 T P / (g tr P_g).

    (Where T is stationary: r multiplies rows of H and K, M P is about zero, and so the derivative of M's part there
    is T times P's diagonal.)
    """
    P = torch.cholesky_inverse(torch_linalg.cholesky_ex(M)[0]).diagonal(dim1=1, dim2=2)
    return torch.nan_to_num(T * P[:, s.m :] / (g * P[:, : s.m].sum(1))[:, None], nan=0.0)


def _first_weights(s: System) -> Tensor:
    """As for the row of middle slopes, with all inputs in it."""
    size = s.H[:, 0].abs() + (s.K[:, 0].abs()[:, None] @ s.H[:, 1:].abs()).squeeze(1)
    return 1.0 / size.clamp_min(1e-6 * size.amax(1, keepdim=True)).clamp_min(2.0**-500)


def _inside(s: System, T: Tensor | None, mu: Tensor | None) -> Tensor:
    """Multipliers for which the units' part of M is positive definite."""
    A, B = s.K[:, s.m :], s.H[:, s.m :]
    B2 = B @ B.mT if mu is None else (B * mu[:, None]) @ B.mT
    rows = B2.abs().sum(2)
    floor = 1e-3 * rows.amax(1, keepdim=True).clamp_min(2.0**-500)
    safe = torch.zeros_like(s.r)
    for _ in range(s.F):  # above the row sums of B B' + A T A'
        now = 1.5 * (rows + ((A * safe[:, None]) @ A.mT).abs().sum(2)) + floor
        done = bool((now <= safe * (1.0 + 1e-12)).all())
        safe = now
        if done:
            break
    if T is None:
        return safe
    T = torch.where(T > 0, T, safe)
    fine = torch.zeros(len(T), dtype=torch.bool)
    for _ in range(5):
        fine = torch_linalg.cholesky_ex(torch.diag_embed(T) - B2 - (A * T[:, None]) @ A.mT)[1] == 0
        if bool(fine.all()):
            return T
        T = torch.where(fine[:, None], T, torch.maximum(1.2 * T, 0.7 * T + 0.3 * safe))
    return torch.where(fine[:, None], T, safe)


def _least(s: System, T: Tensor, mu: Tensor | None) -> Tensor:
    """The least g for T and mu, an estimate: the largest eigenvalue of a Schur complement."""
    M, m = s.matrix(torch.zeros_like(T[:, 0]), T, mu), s.m
    L, info = torch_linalg.cholesky_ex(M[:, m:, m:])
    half = torch_linalg.solve_triangular(L, M[:, m:, :m], upper=False)
    schur = -M[:, :m, :m] + half.mT @ half
    fine = (info == 0) & torch.isfinite(schur).flatten(1).all(1)
    top = torch_linalg.eigvalsh(torch.where(fine[:, None, None], schur, 0.0))[:, -1]
    return torch.where(fine, top, torch.inf)


def _newton(
    s: System, g: Tensor, T: Tensor, mu: Tensor | None, M: Tensor, gap: float
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """One of Newton's steps on the barrier: the variables and M, which is positive definite, afterwards."""
    m, n = s.m, s.n
    P = torch.cholesky_inverse(torch_linalg.cholesky_ex(M)[0])
    bulk = P[:, m:, m:]
    PK = P @ s.K
    mixed = PK[:, m:]
    KPK = s.K.mT @ PK
    H = bulk.square() - mixed.square() - mixed.mT.square() + KPK.square()
    slope = (KPK - bulk).diagonal(dim1=1, dim2=2)
    order = float(m + s.F)
    if mu is None:
        t = order / (gap * g)
        first = (t - P.diagonal(dim1=1, dim2=2)[:, :m].sum(1))[:, None]
        corner = P[:, :m, :m].square().sum((1, 2))[:, None, None]
        cross = (P[:, :m, m:].square().sum(1) - PK[:, :m].square().sum(1))[:, None]
        scale = torch.cat([g[:, None], T], 1)
    else:
        t = torch.where(s.held, (order / (gap * s.total(mu)))[:, None], 0.0)
        PH = P @ s.H
        HPH = s.H.mT @ PH
        first = HPH.diagonal(dim1=1, dim2=2) - t / mu.square()
        corner = HPH.square() + torch.diag_embed(torch.where(s.held, 2.0 * t / mu.square() / mu, 1.0))
        cross = (s.H.mT @ PK).square() - PH[:, m:].mT.square()
        scale = torch.cat([mu, T], 1)
    H = torch.cat([torch.cat([corner, cross], 2), torch.cat([cross.mT, H], 2)], 1)
    H = scale[:, :, None] * H * scale[:, None]
    H = H + torch.diag_embed(1e-11 * H.diagonal(dim1=1, dim2=2) + 2.0**-500)
    gradient = scale * torch.cat([first, slope], 1)
    factor, info = torch_linalg.cholesky_ex(H)
    step = -torch.cholesky_solve(gradient[:, :, None], factor).squeeze(2)
    decrement = -(step * gradient).sum(1)
    fine = (info == 0) & torch.isfinite(step).all(1) & (decrement >= 0)
    step = torch.where(fine[:, None], step, 0.0)
    size = torch.where(step.amin(1) < -0.9, 0.9 / -step.amin(1).clamp_max(-0.9), 1.0)
    move = scale * step
    dg, dmu = (move[:, 0], None) if mu is None else (torch.zeros_like(g), move[:, :n])
    change = s.change(dg, move[:, -s.F :], dmu)
    left = torch.arange(len(g))
    for _ in range(TRIES):
        left = left[torch_linalg.cholesky_ex(M[left] + size[left, None, None] * change[left])[1] != 0]
        if not len(left):
            break
        size[left] *= 0.5
    size[left] = 0.0
    size = torch.where(size < 1.0, 0.8 * size, size)
    new, M = scale + size[:, None] * move, M + size[:, None, None] * change
    return (new[:, 0], new[:, 1:], None, M) if mu is None else (g, new[:, n:], new[:, :n], M)


def proved(s: System, T: Tensor, mu: Tensor | None) -> Tensor:
    """``(k,)``: the bound for a g for which M is proved; infinite where none is."""
    least = _least(s, T, mu).clamp_min(2.0**-500)
    found = torch.full_like(least, torch.inf)
    for room in ROOM:
        waiting = torch.isinf(found) & torch.isfinite(least)
        if not bool(waiting.any()):
            break
        tried = torch.where(torch.isfinite(least), least, 1.0) * (1.0 + room)
        fine = _semidefinite(s, tried, T, mu) & waiting
        square = tried if mu is None else tried * s.total(mu) * (1.0 + 2.0 * gamma(s.n + 4))
        found = torch.where(fine, square.sqrt() * (1.0 + 2.0**-50), found)
    return found


def _semidefinite(s: System, g: Tensor, T: Tensor, mu: Tensor | None) -> Tensor:
    """``(k,)`` bool: M is positive semidefinite in exact arithmetic, for the numbers of ``H``, ``K`` as they are."""
    n = s.m + s.F
    top = torch.cat([g[:, None].expand(-1, s.m), T], 1)
    q = 1.0 / top.sqrt()
    H, K = q[:, :, None] * s.H, q[:, :, None] * s.K * T.sqrt()[:, None]
    if mu is not None:
        H = H * mu.sqrt()[:, None]
    M = torch.eye(n, dtype=g.dtype) - H @ H.mT - K @ K.mT
    M = 0.5 * (M + M.mT)
    size = norm_up(H.abs().flatten(1), 2).square() + norm_up(K.abs().flatten(1), 2).square() + 1.0
    # The scaled factors are off by a few units in the last place, the products by those of their sums.
    lost = 8.0 * gamma(H.shape[2] + K.shape[2] + 16) * size
    shift = 4.0 * lost + 16.0 * gamma(n + 8) * (n + size)
    S = M - torch.diag_embed(shift[:, None].expand(-1, n))
    L, info = torch_linalg.cholesky_ex(S)
    L = torch.tril(torch.where(torch.isfinite(L), L, 0.0))
    residual = norm_up((S - L @ L.mT).abs().flatten(1), 2)
    rounding = 4.0 * gamma(n + 8) * (norm_up(L.abs().flatten(1), 2).square() + norm_up(S.abs().flatten(1), 2))
    return (info == 0) & (residual + rounding + lost < shift) & (g > 0) & (T > 0).all(1)


__all__ = ["Multiplied", "Multipliers", "System", "multiplier_bounds", "proved"]
