"""The constant of a run for given multipliers, in plain floating point and differentiable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.linalg import torch_linalg, vector_norm
from lipbridge.lipsdp.by_channel.frequencies import Block
from lipbridge.lipsdp.by_channel.runs import Run
from lipbridge.lipsdp.constraints import Increments
from lipbridge.lipsdp.elimination import share, through_units


def log_constant(
    run: Run, logs: Sequence[Tensor], before: Tensor | None, after: Tensor | None, squarings: int
) -> Tensor:
    """The log of a smooth upper bound of a run's constant, differentiable; infinite if the multipliers do not hold.

    Args:
        logs: of the multipliers ``(constraints, units)``, one a joint.
        before: logs of the factors before the run, by unit; None for the network's input.
        after: logs of those behind it; None for its output.
        squarings: log2 of the order of the Schatten norm.
    """
    first = run.blocks[0].weight
    H = _after(run, after)
    for block, rule, values in zip(run.blocks[:0:-1], run.increments[::-1], list(logs)[::-1], strict=True):
        step = _stage(block, rule, values, H)
        if step is None:
            return torch.tensor(math.inf, dtype=torch.float64)
        H = step
    W = first if before is None else first * (-before[run.blocks[0].reads]).exp()
    if W.shape[-1] <= W.shape[-2]:
        F = W.mH @ H @ W
    else:  # the same eigenvalues on the smaller side
        factor, info = torch_linalg.cholesky_ex(H)
        if bool((info != 0).any()):
            return torch.tensor(math.inf, dtype=torch.float64)
        C = factor.mH @ W
        F = C @ C.mH
    scale = F.diagonal(dim1=-2, dim2=-1).real.sum(-1).max().detach().clamp_min(1e-300)
    F, log_scale = F / scale, scale.log()
    power, shift = F, torch.zeros((), dtype=torch.float64)
    for _ in range(squarings):
        power = power @ power
        size = power.abs().amax().detach().clamp_min(1e-300)
        power, shift = power / size, 2.0 * shift + size.log()
    trace = torch.einsum("fij,fji->", power, F).real
    order = 2.0**squarings + 1.0
    return 0.5 * ((trace.clamp_min(1e-300).log() + shift) / order + log_scale)


def _after(run: Run, after: Tensor | None) -> Tensor:
    writes = run.blocks[-1].writes
    diagonal = torch.ones(len(writes), dtype=torch.float64) if after is None else (2.0 * after[writes]).exp()
    weight = run.blocks[-1].weight
    return torch.diag(diagonal).to(weight.dtype)[None]


def _stage(block: Block, rule: Increments, logs: Tensor, H: Tensor) -> Tensor | None:
    """H before a joint from that behind its next layer; see :mod:`lipbridge.lipsdp.elimination`."""
    gram = block.weight.mH @ H @ block.weight
    E = rule.outputs
    u = len(block.reads)
    G = through_units(gram, E, E, u)
    if not rule.variables:
        return G
    T = logs.exp()[:, block.reads]
    top = torch.diag(T.sum(0)).to(gram.dtype) + G[:, :u, :u]
    S = torch.diag(T[list(rule.group)].flatten()).to(gram.dtype) - G[:, u:, u:]
    factor, info = torch_linalg.cholesky_ex(S)
    if bool((info != 0).any()):
        return None
    X = torch_linalg.solve_triangular(factor, G[:, u:, :u], upper=False)
    H = top + X.mH @ X
    return 0.5 * (H + H.mH)


def starting_logs(run: Run, factors: Sequence[Tensor], norms: Sequence[float]) -> list[Tensor]:
    """Logs of multipliers that hold and are not worse than the product of the scaled layers' norms, one a joint.

    Behind a layer ``V(y) <= g |y|^2`` in the scaled coordinates, with g the product of the squared constants from there
    on; see :func:`lipbridge.lipsdp.elimination.closed_form`.

    Args:
        factors: of the joints inside the run, by unit.
        norms: of the scaled layers, without their powers of two, one a layer.
    """
    found: list[Tensor] = []
    g = 1.0
    for index in range(len(run.increments) - 1, -1, -1):
        rule, d = run.increments[index], factors[index]
        g *= max(norms[index + 1], 1e-100) ** 2
        m, R, c = rule.outputs[:, 0], rule.outputs[:, 1:], rule.constraints
        part, gain = 1.0, float(m.square().sum())
        if rule.variables:
            part = share(m, R, c)
            gain += c * part + math.sqrt(c) * float(vector_norm(R.T @ m))
        tau = max(g * part * (1.0 + 1e-6), 1e-290)
        found.append((2.0 * d.log() + math.log(tau)).expand(c, -1).clone())
        g *= gain
    return found[::-1]
