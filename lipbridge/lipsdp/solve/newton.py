"""Newton's method on the barrier of LipSDP: feasible multipliers that get better, and how far they are from the best.

``x0 / mu`` plus the barrier of :mod:`lipbridge.lipsdp.solve.barrier` is minimised by damped Newton steps, while mu
falls to what the gap asks for. With M(x) = A(x) - C, M^-1 = P + Q and the Newton step d at mu, the matrix

    X = mu (P + LIGHT Q - P A(d) P - P A(d) Q - Q A(d) P - LIGHT Q A(d) Q)

obeys the dual's equations exactly. Where it is semidefinite, ``mu (order - <P + LIGHT Q, A(d)>)`` bounds what is left
to gain in rho. It is if the Newton decrement is below LIGHT, and that is a quadratic function of 1/mu, so the least
such mu is known in closed form; above, a factorisation tells.

Source: dual scaling (Benson, Ye, Zhang 2000), with the weights of our barrier. Law: every iterate is strictly feasible;
the stated gap is not negative.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lipbridge.linalg import cholesky
from lipbridge.lipsdp.elimination import eliminate_stage, largest_of, starting_multipliers
from lipbridge.lipsdp.solve.barrier import LIGHT, Derivatives, Factors, Program
from lipbridge.lipsdp.system import LipSDP

#: By how much mu falls at a time, the decrement below which it does, and the share of its end that it never goes below.
FALL, CENTRED, END = 3.0, 0.5, 0.4
#: The share of the way to the boundary, were it straight, that the first trial of a step takes.
SHARE = 0.75
#: Newton decrements above which no dual point is looked for.
HOPELESS = 4.0


@dataclass(frozen=True, eq=False)
class Solution:
    """The last iterate, feasible; ``gap`` bounds ``1 - optimum / rho`` (in plain floating point, not proved)."""

    vectors: list[Tensor]
    rho: float
    gap: float
    steps: int
    timed_out: bool


def interior_point(system: LipSDP, margin: float = 0.03) -> tuple[list[Tensor], float] | None:
    """Multipliers well inside the feasible set, one value a layer, and their rho; None if rounding leaves no room."""
    last = system.stages[-1].weight
    H = torch.eye(last.shape[0], dtype=torch.float64)
    vectors: list[Tensor] = []
    for stage in reversed(system.stages):
        T = starting_multipliers(stage, H) * (1.0 + margin)
        step = eliminate_stage(stage, T, H)
        if step is None:
            return None
        H = step
        vectors.append(T)
    rho = float(largest_of(H, system.entry)) * (1.0 + margin)
    return (vectors[::-1], rho) if 0.0 < rho < math.inf else None


def minimise(program: Program, x: Tensor, tolerance: float, deadline: float, most: int = 200) -> Solution:
    """Lower x_0 = rho from a strictly feasible x until the relative gap is below ``tolerance``, or time is over."""
    factors = program.factors(x)
    order, count = program.order, x.numel()
    mu, gap, lower = 0.0, 1.0, 0.0
    cost = torch.zeros_like(x)
    cost[0] = 1.0
    steps, seconds, timed_out = 0, 0.0, False
    while factors is not None and steps < most:
        begin = time.perf_counter()
        if begin + 1.3 * seconds > deadline:
            timed_out = True
            break
        found = program.derivatives(factors, count)
        b = found.gradient
        solved = _solve(found.hessian, torch.stack([cost, b], 1))
        if solved is None:
            break
        u, v = solved.unbind(1)
        scalars = cast(Any, torch.stack([x[0], u[0], v[0], b @ v, b[0]]))
        rho, cu, cv, bv, largest = cast(list[float], scalars.tolist())
        mu = mu or 1.0 / largest  # where rho's own derivative vanishes
        decrement = bv - 2.0 * cv / mu + cu / (mu * mu)
        end = END * tolerance * rho / order
        if decrement < CENTRED and mu > end:
            mu = max(mu / FALL, end)
            decrement = bv - 2.0 * cv / mu + cu / (mu * mu)
        d = v - u / mu
        lower = max(lower, _lower_bound(rho, order, cu, cv, bv))
        hoped = rho - mu * (order - bv + cv / mu)
        if lower < (1.0 - tolerance) * rho <= hoped and decrement < HOPELESS and program.is_dual_feasible(factors, d):
            lower = hoped
        gap = 1.0 - lower / rho
        if gap < tolerance:
            break
        moved = _step(program, x, d, factors, mu, decrement, found)
        if moved is None:
            break
        x, factors = moved
        steps += 1
        seconds = time.perf_counter() - begin
    return Solution(program.vectors(x), float(x[0]), max(gap, 0.0), steps, timed_out)


def _lower_bound(rho: float, order: float, cu: float, cv: float, bv: float) -> float:
    """The best lower bound of the optimal rho that a dual point of this step gives; 0 if there is none."""
    # delta(t)^2 = bv - 2 t cv + t^2 cu for t = 1/mu: the largest t with delta^2 <= LIGHT.
    root = cv * cv - cu * (bv - 0.98 * LIGHT)
    if root < 0.0 or cu <= 0.0:
        return 0.0
    t = (cv + math.sqrt(root)) / cu
    if t <= 0.0:
        return 0.0
    return rho - (order - bv + t * cv) / t


def _step(
    program: Program, x: Tensor, d: Tensor, factors: Factors, mu: float, decrement: float, derivatives: Derivatives
) -> tuple[Tensor, Factors] | None:
    """Go along d as far as M stays definite and the barrier function falls."""
    before = float(x[0]) / mu - factors.logdet
    alpha = min(1.0, SHARE * derivatives.largest_step(d))
    for _ in range(40):
        y = x + alpha * d
        found = program.factors(y)
        if found is not None:
            after = float(y[0]) / mu - found.logdet
            if after < before - 1e-3 * alpha * decrement + 1e-9 * abs(before):
                return _further(program, x, d, mu, y, found, after) if alpha == 1.0 else (y, found)
        alpha *= 0.6
    return None


def _further(
    program: Program, x: Tensor, d: Tensor, mu: float, y: Tensor, factors: Factors, value: float
) -> tuple[Tensor, Factors]:
    """Double a full step while that gains: multipliers that begin far too small grow by a constant a step otherwise."""
    alpha = 2.0
    while alpha < 1e6:
        z = x + alpha * d
        found = program.factors(z)
        if found is None or not float(z[0]) / mu - found.logdet < value - 0.5:
            break
        y, factors, value, alpha = z, found, float(z[0]) / mu - found.logdet, 2.0 * alpha
    return y, factors


def _solve(H: Tensor, right: Tensor) -> Tensor | None:
    """``H^-1 right`` for a positive definite H of any scaling, with a little ridge where rounding asks for it."""
    diagonal = H.diagonal().clone()
    if not bool((diagonal > 0).all() and torch.isfinite(diagonal).all()):
        return None
    scale = diagonal.rsqrt()
    H.mul_(scale[:, None]).mul_(scale)
    for ridge in (0.0, 1e-14, 1e-12, 1e-10):
        H.diagonal().add_(ridge)
        L = cholesky(H)
        if L is not None:
            return torch.cholesky_solve(scale[:, None] * right, L) * scale[:, None]
    return None
