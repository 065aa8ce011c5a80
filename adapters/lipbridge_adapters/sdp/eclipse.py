"""ECLipsE: one small semidefinite program a layer, from the input to the output.

Let ``C`` be the covariance form of a layer's source: what of |x0|^2 = 1 can reach it, z = L v with |v| <= 1 and
``C = L L'``. The multipliers of this layer are those with which the network "L, this activation, next weight" has the
least LipSDP bound: a program of one layer. They fix the next covariance form

    C' = A L (I - L' T L)^-1 L' A' + B D^-1 B'        for the layer's outputs A z + B q, D = diag(T) on q,

and the bound is the root of the largest eigenvalue of the last one. It is greedy: no layer knows what comes after the
next weight.

Source: Xu and Sivaranjani 2024 (ECLipsE), written for any constraint of :mod:`lipbridge.lipsdp.constraints`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.linalg import eigenvalues, torch_linalg
from lipbridge.lipsdp.blocks import blocks_of, predicted_size
from lipbridge.lipsdp.elimination import closed_form, diagonals
from lipbridge.lipsdp.multipliers import closed_form_multipliers, prove_from_multipliers
from lipbridge.lipsdp.system import LipSDP, Stage
from lipbridge.problem.question import Question
from lipbridge_adapters.sdp.common import Run, SDPVerifier


class EclipseVerifier(SDPVerifier):
    """A program of one layer after the other; the bound of all their multipliers together is proved."""

    name = "eclipse"
    summary = "Lipschitz constant, global or in balls: a small semidefinite program a layer, in turn (ECLipsE)"
    method = "ECLipsE"

    def size(self, system: LipSDP) -> tuple[int, int]:
        """The largest of the layers' programs."""
        sizes: list[tuple[int, int]] = []
        width = min(system.entry.shape)
        for stage in system.stages:
            entry = torch.empty(stage.width, min(width, stage.width), dtype=torch.float64)
            sizes.append(predicted_size(_alone(system.question, entry, stage)))
            width = stage.weight.shape[0]
        return max(entries for entries, _ in sizes), max(cells for _, cells in sizes)

    def multipliers(self, system: LipSDP, run: Run) -> Sequence[Tensor] | None:
        """Each layer's own where the solver gave some in time, else the closed form's of that layer."""
        C = system.entry @ system.entry.T
        found, answers = list[Tensor](), 0
        for index, stage in enumerate(system.stages):
            part = _alone(system.question, _root(C), stage)
            own = closed_form_multipliers(part)
            if run.in_time and stage.increments.variables:
                now = time.perf_counter()
                share = now + (run.deadline - now) / (len(system.stages) - index)
                blocks = blocks_of(part, closed_form(part))
                point = run.solve(blocks, share)
                if point is not None:
                    answers += 1
                    own = part.multipliers([torch.tensor(T) for T in blocks.vectors(point)])
            try:
                best = prove_from_multipliers(part, own)
            except NumericalFailure:
                return None
            if not best.value > 0.0 or best.multipliers is None:
                return None
            T = part.vectors(best.multipliers)[0] / best.value**2
            found.append(T)
            C = _next(part.entry, stage, T)
        if not run.in_time and answers < len(system.stages):
            run.stopped = run.stopped or f"The time limit was reached after {answers} layers' programs."
        rho = float(eigenvalues(C)[-1])
        return [rho * T for T in found] if answers and math.isfinite(rho) else None


def _alone(question: Question, entry: Tensor, stage: Stage) -> LipSDP:
    """One layer as a network of its own."""
    return LipSDP(question=question, entry=entry, stages=(stage,), exponent=0, constant=False)


def _root(C: Tensor) -> Tensor:
    """L ``(u, r)`` with ``L L' = C``, up to rounding, of C's rank."""
    values, vectors = torch_linalg.eigh(0.5 * (C + C.T))
    kept = values > 1e-14 * values[-1].clamp_min(torch.finfo(C.dtype).tiny)
    return vectors[:, kept] * values[kept].sqrt()


def _next(L: Tensor, stage: Stage, T: Tensor) -> Tensor:
    """The covariance form after the layer, in plain floating point: the whole chain is proved afterwards."""
    E, u = stage.increments.outputs, stage.width
    columns = stage.weight.reshape(-1, E.shape[0], u)
    both = torch.einsum("aku,kj->aju", columns, E)
    onto_z, onto_q = both[:, 0], both[:, 1:]
    on_z, on_q = diagonals(stage, T)
    B = (onto_q if stage.free is None else onto_q[..., stage.free]).flatten(1)
    seen = on_q > 0
    C = (B[:, seen] / on_q[seen]) @ B[:, seen].T
    if bool(onto_z.any()):
        values, vectors = torch_linalg.eigh(torch.eye(L.shape[1], dtype=L.dtype) - L.T @ (on_z[:, None] * L))
        reached = onto_z @ L @ (vectors / values.clamp_min(1e-12).sqrt())
        C = C + reached @ reached.T
    return 0.5 * (C + C.T)
