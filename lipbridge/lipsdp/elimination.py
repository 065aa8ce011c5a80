"""Eliminates the LipSDP matrix inequality stage by stage, from the output to the input, in plain floating point.

Write V_l(z) = z' H_l z for the largest value, over the units' free variables from activation l on, of
``|out|^2 + sum T (z^2 - |q|^2)``. Then H_(k+1) = I, and one Schur complement a stage gives H_l:

    G = [A B]' H_(l+1) [A B] for the stage's map (z, q) -> A z + B q,
    D = diag(T) on q,   D - G_qq > 0 (else V is infinite: T is not feasible),
    H_l = diag(T) + G_zz + G_zq (D - G_qq)^-1 G_qz,

and rho = lambda_max(W_1' H_1 W_1). Every operation is differentiable in T. Nothing here is a proof
(:mod:`lipbridge.lipsdp.proof` is); rho is convex in T, which is what mixing with a feasible point relies on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lipbridge.linalg import cholesky, eigenvalues, solve_triangular, vector_norm
from lipbridge.lipsdp.system import LipSDP, Stage

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def contract(stage: Stage, gram: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``E' gram E`` unit by unit: from the outputs, K u rows, to (z, q), u + J f rows for f free units."""
    u = stage.width
    whole = through_units(gram, left, right, u)
    if stage.free is None:
        return whole
    kept = torch.cat([torch.arange(u), *(stage.free + j * u for j in range(1, left.shape[1]))])
    return whole[kept[:, None], kept]


def through_units(gram: Tensor, left: Tensor, right: Tensor, units: int) -> Tensor:
    """``left' gram right`` unit by unit, for a stack ``(..., K u, K u)``: ``(..., a u, b u)``, real or complex."""
    K, stack = left.shape[0], gram.shape[:-2]
    blocks = gram.reshape(*stack, K, units, K, units)
    whole = torch.einsum("ka,...kilj,lb->...aibj", left.to(gram.dtype), blocks, right.to(gram.dtype))
    return whole.reshape(*stack, left.shape[1] * units, right.shape[1] * units)


def diagonals(stage: Stage, T: Tensor) -> tuple[Tensor, Tensor]:
    """The multipliers as diagonals on z ``(u,)`` and on q ``(J f,)``; ``T`` is ``(constraints, u)``.

    Multipliers of units without a q mean nothing and count as zero.
    """
    if stage.free is None:
        return T.sum(0), T[list(stage.increments.group)].flatten()
    on_z = stage.on_all_units(stage.on_free_units(T.sum(0, keepdim=True)).flatten())[0]
    return on_z, stage.on_free_units(T[list(stage.increments.group)]).flatten()


def eliminate(system: LipSDP, vectors: Sequence[Tensor]) -> Tensor | None:
    """rho of the given multipliers (0-dim float64), or None if they are not feasible."""
    H = torch.eye(_outputs(system), dtype=torch.float64)
    for stage, T in zip(reversed(system.stages), reversed(vectors), strict=True):
        step = eliminate_stage(stage, T, H)
        if step is None:
            return None
        H = step
    return largest_of(H, system.entry)


def eliminate_stage(stage: Stage, T: Tensor, H: Tensor) -> Tensor | None:
    """H_l from H_(l+1), or None if ``T`` is not feasible."""
    E, u = stage.increments.outputs, stage.width
    G = contract(stage, stage.weight.T @ H @ stage.weight, E, E)
    on_z, on_q = diagonals(stage, T)
    # A layer that cuts the inequality needs D - G_qq >= 0 only, and is tight there: room for rounding.
    S = torch.diag(on_q * (1.0 + 1e-12) if stage.increments.cuts else on_q) - G[u:, u:]
    top = torch.diag(on_z) + G[:u, :u]
    if S.shape[0] == 0:
        return top
    scale = _inverse_root(S.diagonal())
    L = cholesky(S * scale[:, None] * scale)
    if L is None:
        return None
    if stage.increments.cuts:
        return top
    X = solve_triangular(L, scale[:, None] * G[u:, :u])
    H = top + X.T @ X
    return 0.5 * (H + H.T) if bool(torch.isfinite(H).all()) else None


def largest_of(H: Tensor, W: Tensor) -> Tensor:
    """lambda_max(W' H W) for a positive semidefinite H, from the smaller of the two sides."""
    if W.shape[1] <= W.shape[0]:
        A = W.T @ H @ W
        return eigenvalues(0.5 * (A + A.T))[-1]
    scale = _inverse_root(H.diagonal())
    L = cholesky(H * scale[:, None] * scale + 1e-14 * torch.eye(H.shape[0], dtype=H.dtype))
    if L is None:
        return torch.tensor(math.inf, dtype=torch.float64)
    Y = L.T @ (W / scale[:, None])
    return eigenvalues(Y @ Y.T)[-1]


def _inverse_root(diagonal: Tensor) -> Tensor:
    """Scales that bring a diagonal to one; one where it is not positive."""
    return torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt()


def _outputs(system: LipSDP) -> int:
    return (system.stages[-1].weight if system.stages else system.entry).shape[0]


def closed_form(system: LipSDP) -> list[Tensor]:
    """A feasible point in closed form: one multiplier a layer, chosen from the output to the input.

    Where V(y) <= g |y|^2 after a layer, with g the largest eigenvalue of W' H W, the multiplier tau that minimises the
    bound of V before it solves a scalar problem: tau = g (lambda_max(R'R) + |R'm| / sqrt(constraints)) for outputs
    ``y = m z + R q``. For slopes in [a, b] this gives V <= g max(|a|, |b|)^2 |z|^2 with equality only along the top
    eigenvector, so the bound is never above the trivial one.

    Source: in the manner of ECLipsE-Fast (Xu and Sivaranjani 2024), run from the output and for any constraint here.
    """
    H = torch.eye(_outputs(system), dtype=torch.float64)
    vectors: list[Tensor] = []
    for stage in reversed(system.stages):
        T = starting_multipliers(stage, H) * (1.0 + (1e-12 if stage.increments.cuts else 1e-9))
        step = eliminate_stage(stage, T, H)
        if step is None:  # g was rounded down beyond the margin: a wider one is feasible for certain
            T = T * 1.01
            step = eliminate_stage(stage, T, H)
        H = step if step is not None else torch.full((stage.width, stage.width), math.nan, dtype=torch.float64)
        vectors.append(T)
    return vectors[::-1]


def starting_multipliers(stage: Stage, H: Tensor) -> Tensor:
    """The multipliers ``(constraints, u)`` of :func:`closed_form` without its margin, where V(y) = y' H y afterwards.

    Where the units differ (a local system), the layer is first scaled so that each unit's constant is one: its outputs
    obey ``y = m z + R q`` with ``|y|^2 <= s^2 (...)``, and its multiplier is its own share of the scaled g.
    """
    rule = stage.increments
    W = stage.weight if stage.separate is None else stage.separate.weight
    gram = W.T @ H @ W
    g, tau = float(eigenvalues(0.5 * (gram + gram.T))[-1]), 0.0
    if stage.separate is not None:
        return g * stage.separate.share
    if rule.variables:
        tau = g * share(rule.outputs[:, 0], rule.outputs[:, 1:], rule.constraints)
    return torch.full((rule.constraints, stage.width), tau, dtype=torch.float64)


def share(m: Tensor, R: Tensor, constraints: int) -> float:
    """Of outputs ``y = m z + R q``: the multiplier for g = 1."""
    return float(eigenvalues(R.T @ R)[-1] + vector_norm(R.T @ m) / math.sqrt(constraints))


def mix(system: LipSDP, vectors: Sequence[Tensor], feasible: Sequence[Tensor], steps: int = 24) -> list[Tensor]:
    """The best convex combination of multipliers, which may be infeasible, with feasible ones.

    rho is convex along the segment and infinite on a part of it: golden section over the logarithm of the share.
    """

    def at(share: float) -> list[Tensor]:
        return [(1.0 - share) * T + share * F for T, F in zip(vectors, feasible, strict=True)]

    def value(share: float) -> float:
        rho = eliminate(system, at(share))
        return math.inf if rho is None or not math.isfinite(float(rho)) else float(rho)

    share, best = golden(lambda x: value(10.0**x), -9.0, 0.0, steps)
    candidates = [(best, 10.0**share), (value(0.0), 0.0), (value(1.0), 1.0)]
    return at(min(candidates)[1])


def golden(function: Callable[[float], float], low: float, high: float, steps: int) -> tuple[float, float]:
    """Argument and value of the least value met by golden section; infinite values lie to the left."""
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    values = [function(x) for x in inner]
    best = min(zip(values, inner, strict=True))
    for _ in range(steps):
        if values[0] < values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - _GOLDEN * (high - low)
            values[0] = function(inner[0])
            best = min(best, (values[0], inner[0]))
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + _GOLDEN * (high - low)
            values[1] = function(inner[1])
            best = min(best, (values[1], inner[1]))
    return best[1], best[0]
