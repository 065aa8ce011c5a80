"""Descent on the log-multipliers of LipSDP, for stacks of networks at once, by products and factorisations alone.

From the output to the input one Schur complement a layer gives rho, the largest eigenvalue of a matrix F of the size of
the input (:mod:`lipbridge.lipsdp.elimination`). The largest eigenvalue is smoothed: ``X = F^p / tr F^p`` is a
density on the input, and the derivative of ``log (tr F^(p+1))^(1/(p+1))`` in the log of a multiplier is

    T_a (<z_a^2> - <q_a^2>) / <F>,    <y^2> = the mean of y^2 over inputs of density X with the maximising q,

so a gradient costs one pass of maps from the input to the output: no graph is recorded. Where the inequality falls
apart (abs, sin, joint constraints) the least feasible length of a layer's multipliers is such an eigenvalue as well, so
only their direction is free, and the chain rule goes on with that eigenvalue's density.

Steps are Adam's, of a length that falls to zero over a fixed number of them. Where a network's step leaves the
feasible set, half of it is taken back. Decisions are made by ``torch.where``: there is no host synchronisation, and the
same code runs on every device that knows the dtype.

Source: Kingma and Ba 2015 for the step; its use on LipSDP is ours. Law: the gradient is autograd's through the
elimination; the returned multipliers are feasible up to rounding and never worse than the first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipbridge.linalg import eigenvalues, torch_linalg
from lipbridge.lipsdp.constraints import Increments
from lipbridge.lipsdp.elimination import contract, diagonals, eliminate_stage
from lipbridge.lipsdp.solve.newton import Solution
from lipbridge.lipsdp.system import LipSDP

#: Length of the first step in log-multipliers, and the decay rates of Adam's two averages.
STEP, FIRST, SECOND = 0.1, 0.9, 0.99
#: By how much the step grows back after it had to be halved.
GROWTH = 1.1
#: log2 of the power p.
POWER = 7


@dataclass(frozen=True, eq=False)
class Stack:
    """The matrix inequalities of networks of equal widths and activations.

    Attributes:
        entry: ``(N, u_1, n)``, with n at most u_1: wider first layers enter through a triangular factor.
        weights: one a stage, ``(N, m, K u)``.
        masks: one a stage, ``(N, u)``: one for units with variables, zero for units that are dropped or have none.
        increments: one a stage.
    """

    entry: Tensor
    weights: list[Tensor]
    masks: list[Tensor]
    increments: list[Increments]


def stack_of(systems: Sequence[LipSDP], device: torch.device | str = "cpu") -> Stack:
    """The stack of systems of equal widths and activations; dropped units come back as zeros."""
    entries: list[Tensor] = []
    weights: list[list[Tensor]] = [[] for _ in systems[0].stages]
    masks: list[list[Tensor]] = [[] for _ in systems[0].stages]
    for system in systems:
        W = system.entry.to(device)
        if W.shape[1] > W.shape[0]:  # W_1 enters through W_1 W_1' only
            W = torch_linalg.qr(W.T, mode="r")[1].T
        full = W.new_zeros(system.stages[0].units, min(system.entry.shape[1], system.stages[0].units))
        full[system.stages[0].kept, : W.shape[1]] = W
        entries.append(full)
        for index, stage in enumerate(system.stages):
            K, u = stage.increments.components, stage.units
            after = system.stages[index + 1] if index + 1 < len(system.stages) else None
            rows = torch.arange(stage.weight.shape[0]) if after is None else after.kept
            W = stage.weight.new_zeros(stage.weight.shape[0] if after is None else after.units, K, u)
            W[rows[:, None, None], torch.arange(K)[:, None], stage.kept] = stage.weight.reshape(len(rows), K, -1)
            weights[index].append(W.flatten(1).to(device))
            mask = W.new_zeros(u)
            mask[stage.kept if stage.free is None else stage.kept[stage.free]] = 1.0
            masks[index].append(mask.to(device))
    increments = [stage.increments for stage in systems[0].stages]
    return Stack(torch.stack(entries), [torch.stack(W) for W in weights], [torch.stack(m) for m in masks], increments)


@dataclass(frozen=True, eq=False)
class _Layer:
    """What the pass to the output needs of a stage.

    Attributes:
        L: the Cholesky factor of ``I - D^(-1/2) G_qq D^(-1/2)``; at a cut the density on ``D^(1/2) q``.
        X: ``L^-1 D^(-1/2) G_qz``; at a cut the diagonal of the smoothed eigenvalue's weights.
        scale: the diagonal of D^(-1/2).
        mean: at a cut the mean of ``D^(-1/2) G_qq D^(-1/2)`` over the density.
    """

    L: Tensor
    X: Tensor
    scale: Tensor
    mean: Tensor


def start(stack: Stack, margin: float = 0.02) -> list[Tensor]:
    """Log-multipliers of the closed form, a little inside the feasible set, each ``(N, constraints, u)``."""
    H = _eye(stack)
    found: list[Tensor] = []
    for W, mask, rule in reversed(list(zip(stack.weights, stack.masks, stack.increments, strict=True))):
        E = rule.outputs.to(W)
        g = _norm(W.mT @ H @ W)
        m, R = E[:, 0], E[:, 1:]
        # lambda_max(R'R) + |R'm| / sqrt(constraints), of a handful of numbers: a Frobenius norm bounds the first.
        share = R.square().sum() + (R.mT @ m).square().sum().sqrt() / math.sqrt(max(rule.constraints, 1))
        T = (g * share * (1.0 + margin))[:, None, None].expand(-1, rule.constraints, mask.shape[1])
        found.append(T.log())
        H = _stage(W, mask, rule, T, H)[0]
    return found[::-1]


def evaluate(stack: Stack, multipliers: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """``(log rho, gradients, multipliers, feasible)`` of networks at multipliers, each ``(N, constraints, u)``.

    Returns:
        The logarithm of the mean of F over the density, which is close below rho, ``(N,)``; the derivatives of the
        smoothed log rho in the log-multipliers; the multipliers, at cuts brought to a feasible length; and whether the
        networks' multipliers were feasible, ``(N,)``.
    """
    H, layers, used = _eye(stack), list[_Layer](), list[Tensor]()
    feasible = torch.ones_like(stack.entry[:, 0, 0], dtype=torch.bool)
    stages = list(zip(stack.weights, stack.masks, stack.increments, multipliers, strict=True))
    for W, mask, rule, T in reversed(stages):
        H, layer, T, fine = _stage(W, mask, rule, T, H)
        layers.append(layer)
        used.append(T)
        feasible = feasible & fine
    layers, used = layers[::-1], used[::-1]
    A = stack.entry
    density, _, mean, _ = _density(A.mT @ H @ A)
    gradients: list[Tensor] = []
    share = torch.ones_like(mean)
    log_rho = mean.log()
    maps = A  # z as a map of the coordinates that the density lives on
    for (W, mask, rule, _), layer, T in zip(stages, layers, used, strict=True):
        E, N, u = rule.outputs.to(W), len(W), mask.shape[1]
        J, C = rule.variables, rule.constraints
        z_square = ((maps @ density) * maps).sum(-1) * mask
        on_z = T * z_square[:, None] / mean[:, None, None]
        if rule.cuts:
            kept = on_z.sum((1, 2))
            weight = layer.X.reshape(N, J, u)
            own = torch.stack([_group(rule, weight, c) for c in range(C)], 1)
            gradients.append(share[:, None, None] * (on_z - kept[:, None, None] * own))
            share = share * kept
            density, mean = layer.L, layer.mean
            q = torch.diag_embed(layer.scale)
            z = q.new_zeros(N, u, J * u)
        else:
            z = maps
            right = layer.X @ z
            q = layer.scale[..., None] * torch_linalg.solve_triangular(layer.L.mT, right, upper=True)
            q_square = (((q @ density) * q).sum(-1)).reshape(N, J, u) * mask[:, None]
            groups = [_group(rule, q_square, c) for c in range(C)]
            on_q = T * (torch.stack(groups, 1) if groups else T) / mean[:, None, None]
            gradients.append(share[:, None, None] * (on_z - on_q))
        outputs = torch.einsum("k,nax->nkax", E[:, 0], z) + torch.einsum(
            "kj,njax->nkax", E[:, 1:], q.unflatten(1, (J, u))
        )
        maps = W @ outputs.flatten(1, 2)
    return log_rho, gradients, used, feasible & torch.isfinite(log_rho)


def descend_one(
    system: LipSDP, deadline: float, device: torch.device | str = "cpu", most: int = 300
) -> Solution | None:
    """Better multipliers than the closed form's for one network, by a time of ``time.perf_counter``; None if none."""
    stack = stack_of([system], device)
    theta = start(stack)
    begin = time.perf_counter()
    evaluate(stack, [t.exp() for t in theta])
    seconds = time.perf_counter() - begin
    steps = min(most, int((deadline - time.perf_counter()) / (1.2 * seconds)))
    if steps < 1:
        return None
    done = [0]

    def more(step: int) -> bool:
        if time.perf_counter() + seconds > deadline:  # slower than planned
            return False
        done[0] = step + 1
        return True

    multipliers, log_rho, found = descend(stack, theta, steps, more)
    if not bool(found):
        return None
    vectors = [T[0, :, stage.kept.to(T.device)].cpu() for T, stage in zip(multipliers, system.stages, strict=True)]
    return Solution(tightened(system, vectors), float(log_rho.exp()), 1.0, done[0], done[0] < steps)


def tightened(system: LipSDP, vectors: Sequence[Tensor]) -> list[Tensor]:
    """Feasible multipliers with their least feasible length where the inequality falls apart."""
    if not any(stage.increments.cuts for stage in system.stages):
        return list(vectors)
    H = torch.eye(system.stages[-1].weight.shape[0], dtype=torch.float64)
    used: list[Tensor] = []
    for stage, T in zip(reversed(system.stages), reversed(vectors), strict=True):
        if stage.increments.cuts:
            E, u = stage.increments.outputs, stage.width
            G = contract(stage, stage.weight.T @ H @ stage.weight, E, E)[u:, u:]
            scale = diagonals(stage, T)[1].rsqrt()
            T = T * (eigenvalues(G * scale[:, None] * scale)[-1] * (1.0 + 1e-10))
        step = eliminate_stage(stage, T, H)
        if step is None:
            return list(vectors)
        H = step
        used.append(T)
    return used[::-1]


def descend(
    stack: Stack, theta: Sequence[Tensor], steps: int, more: Callable[[int], bool] = lambda step: True
) -> tuple[list[Tensor], Tensor, Tensor]:
    """``(multipliers, log rho, found)`` of the best point that ``steps`` evaluations from log-multipliers meet.

    Args:
        stack: the networks.
        theta: log-multipliers, each ``(N, constraints, u)``, feasible.
        steps: evaluations in all.
        more: asked before each evaluation; False ends the descent. The default asks nothing of the device.

    Returns:
        Multipliers, the estimate of log rho, and whether a feasible point was met, each per network.
    """
    theta = list(theta)
    last, best_T = list(theta), [t.exp() for t in theta]
    first, second = [torch.zeros_like(t) for t in theta], [torch.zeros_like(t) for t in theta]
    best = torch.full_like(stack.entry[:, 0, 0], math.inf)
    length, count = torch.full_like(best, STEP), torch.zeros_like(best)
    for step in range(steps):
        if not more(step):
            break
        value, gradients, T, feasible = evaluate(stack, [t.exp() for t in theta])
        better = (feasible & (value < best))[:, None, None]
        best = torch.where(better[:, 0, 0], value, best)
        fine = feasible[:, None, None]
        count = count + feasible
        length = torch.where(feasible, (GROWTH * length).clamp_max(STEP), 0.5 * length)
        now = (length * (1.0 - step / steps))[:, None, None]
        for index, g in enumerate(gradients):
            best_T[index] = torch.where(better, T[index], best_T[index])
            g = torch.where(fine, g, torch.zeros_like(g))
            first[index] = torch.where(fine, FIRST * first[index] + (1.0 - FIRST) * g, 0.5 * first[index])
            second[index] = torch.where(fine, SECOND * second[index] + (1.0 - SECOND) * g * g, second[index])
            mean = first[index] / (1.0 - FIRST**count)[:, None, None]
            root = (second[index] / (1.0 - SECOND**count)[:, None, None]).sqrt() + 1e-12
            last[index] = torch.where(fine, theta[index], last[index])
            # Half way back to the last feasible point, or on by a step of Adam.
            back = 0.5 * (theta[index] + last[index])
            theta[index] = torch.where(fine, theta[index] - now * mean / root, back)
    return best_T, best, best < math.inf


def _eye(stack: Stack) -> Tensor:
    last = stack.weights[-1]
    return torch.eye(last.shape[1], dtype=last.dtype, device=last.device).expand(len(last), -1, -1)


def _group(rule: Increments, values: Tensor, c: int) -> Tensor:
    """The sum of ``(N, J, u)`` over the variables of a constraint."""
    return values[:, [j for j, g in enumerate(rule.group) if g == c]].sum(1)


def _stage(W: Tensor, mask: Tensor, rule: Increments, T: Tensor, H: Tensor) -> tuple[Tensor, _Layer, Tensor, Tensor]:
    """H before the stage from H after it, what the gradient needs, the multipliers, and whether they are feasible."""
    E, N, u = rule.outputs.to(W), len(W), mask.shape[1]
    J = rule.variables
    blocks = (W.mT @ H @ W).reshape(N, rule.components, u, rule.components, u)
    m, R = E[:, 0], E[:, 1:]
    G_qq = torch.einsum("ka,nkilj,lb->naibj", R, blocks, R).reshape(N, J * u, J * u)
    on_q = T[:, list(rule.group)].flatten(1)
    if rule.cuts:
        inverse = on_q.rsqrt()
        density, value, mean, weights = _density(G_qq * inverse[:, :, None] * inverse[:, None])
        T = T * value[:, None, None]
        layer = _Layer(density, weights, inverse, mean)
        fine = torch.isfinite(value)
        return torch.diag_embed(T.sum(1) * mask), layer, T, fine
    scale = on_q.rsqrt()
    S = -(G_qq * scale[:, :, None] * scale[:, None])
    S = S + torch.eye(J * u, dtype=W.dtype, device=W.device)
    L, info = torch_linalg.cholesky_ex(S)
    G_qz = torch.einsum("ka,nkilj,l->naij", R, blocks, m).reshape(N, J * u, u)
    X = torch_linalg.solve_triangular(L, scale[:, :, None] * G_qz, upper=False)
    G_zz = torch.einsum("k,nkilj,l->nij", m, blocks, m)
    H = torch.diag_embed(T.sum(1) * mask) + G_zz + X.mT @ X
    return 0.5 * (H + H.mT), _Layer(L, X, scale, scale), T, info == 0


def _density(F: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a semidefinite F, with r = p + 1: ``F^p / tr F^p``, ``(tr F^r)^(1/r)``, ``tr F^r / tr F^p``, diagonal of F^r.

    The last has a sum of one. The second is above the largest eigenvalue, by a factor of at most ``n^(1/r)``; the third
    is below it.
    """
    size = F.diagonal(dim1=-2, dim2=-1).sum(-1)
    size = torch.where(size > 0, size, torch.ones_like(size))
    A = F / size[:, None, None]
    power, log_trace = A, torch.zeros_like(size)
    for step in range(POWER):
        power = power @ power if step else A @ A
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1)
        power = power / trace[:, None, None]
        log_trace = 2.0 * log_trace + trace.log()
    weights = (power * A).sum(-1)
    mean = weights.sum(-1)
    value = size * ((log_trace + mean.log()) / (2.0**POWER + 1.0)).exp()
    return power, value, size * mean, weights / mean[:, None]


def _norm(F: Tensor) -> Tensor:
    """An upper bound of the largest eigenvalue of a semidefinite F, at most ``n^(1/p)`` above it."""
    return _density(F)[1]
