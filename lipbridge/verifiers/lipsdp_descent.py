"""Descent on the log-multipliers of LipSDP through the block elimination: for networks too large for Newton's method.

A step costs a few products of the layers' matrices, however many multipliers there are. Where the inequality falls
apart (abs, sin, joint constraints) the least feasible length of a layer's multipliers is an eigenvalue, so only their
direction is free; elsewhere Adam's steps are bounded in log-multipliers, so they rarely leave the feasible set; where
one does, the best point comes back with a shorter step.

Source: Kingma and Ba 2015 for the step; its use on LipSDP is ours. Law: the returned multipliers are feasible and
never worse than the first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.linalg import eigenvalues
from lipbridge.verifiers.lipsdp_newton import Solution
from lipbridge.verifiers.lmi_elimination import contract, diagonals, eliminate_stage, largest_of
from lipbridge.verifiers.lmi_system import LipSDP

#: Length of a step in log-multipliers, and the decay rates of Adam's two averages.
STEP, FIRST, SECOND = 0.1, 0.9, 0.99
#: The step shrinks by half when so many evaluations bring no new best.
PATIENCE = 12


def descend(system: LipSDP, vectors: Sequence[Tensor], deadline: float, most: int = 400) -> Solution | None:
    """Better multipliers than the feasible ``vectors``; None if there is no time for two evaluations of rho."""
    theta = [T.log().requires_grad_() for T in vectors]
    first = [torch.zeros_like(T) for T in vectors]
    second = [torch.zeros_like(T) for T in vectors]
    best, kept, step, count, since, seconds = math.inf, [T.log() for T in vectors], STEP, 0, 0, 0.0
    timed_out, found = False, list(vectors)
    for _ in range(most):
        begin = time.perf_counter()
        if begin + 1.3 * seconds > deadline:
            timed_out = True
            break
        rho, T = _evaluate(system, [t.exp() for t in theta])
        value = math.inf if rho is None else float(rho.detach())
        if rho is None or not 0.0 < value < math.inf:
            since, step = 0, 0.5 * step
            _restore(theta, kept, first)
        else:
            gradients = torch.autograd.grad(rho.log(), theta)
            since = 0 if value < best * (1.0 - 1e-4) else since + 1
            if value < best:
                best, kept, found = value, [t.detach().clone() for t in theta], [t.detach() for t in T]
            count += 1
            if since > PATIENCE:
                since, step = 0, 0.5 * step
                _restore(theta, kept, first)
            else:
                _move(theta, gradients, first, second, step, count)
        if step < 1e-3 * STEP:
            break
        seconds = time.perf_counter() - begin
    if not best < math.inf:
        return None
    return Solution(found, best, 1.0, count, timed_out)


def _evaluate(system: LipSDP, vectors: Sequence[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
    """rho, None if not feasible, and the multipliers, brought to their least feasible length at cuts."""
    H = torch.eye(system.stages[-1].weight.shape[0], dtype=torch.float64)
    used: list[Tensor] = []
    for stage, T in zip(reversed(system.stages), reversed(vectors), strict=True):
        if stage.increments.cuts:
            E, u = stage.increments.outputs, stage.width
            G = contract(stage, stage.weight.T @ H @ stage.weight, E, E)[u:, u:]
            scale = diagonals(stage, T)[1].rsqrt()
            T = T * (eigenvalues(G * scale[:, None] * scale)[-1] * (1.0 + 1e-10))
            H = torch.diag(T.sum(0))
        else:
            step = eliminate_stage(stage, T, H)
            if step is None:
                return None, []
            H = step
        used.append(T)
    return largest_of(H, system.entry), used[::-1]


def _restore(theta: list[Tensor], kept: list[Tensor], first: list[Tensor]) -> None:
    with torch.no_grad():
        for t, k, m in zip(theta, kept, first, strict=True):
            t.copy_(k)
            m.zero_()


def _move(
    theta: list[Tensor],
    gradients: tuple[Tensor, ...],
    first: list[Tensor],
    second: list[Tensor],
    step: float,
    count: int,
) -> None:
    """One step of Adam."""
    with torch.no_grad():
        for t, g, m, v in zip(theta, gradients, first, second, strict=True):
            m.mul_(FIRST).add_(g, alpha=1.0 - FIRST)
            v.mul_(SECOND).addcmul_(g, g, value=1.0 - SECOND)
            root = (v / (1.0 - SECOND**count)).sqrt() + 1e-12
            t.sub_(step * (m / (1.0 - FIRST**count)) / root)
