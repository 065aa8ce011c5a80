"""Verdicts on Lipschitz claims: by the exact constant on the pairs' ball where it is found, else pair by pair."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lipbridge.graph.graph import Graph
from lipbridge.problem.bound import Bound
from lipbridge.problem.claim import LipschitzClaim
from lipbridge.problem.problem import Problem
from lipbridge.problem.property import Judgement, Property, Verdict
from lipbridge.problem.question import Ball, Question
from lipbridge.problem.verifier import Budget, Refusal
from lipbridge.rounding.scalars import FLOOR
from lipbridge.verifiers.exact import ExactVerifier
from lipbridge.verifiers.properties import judge

#: By how much the other entries of a pair's difference are smaller than the largest, relatively.
SMALLER = 1e-6


def judge_claim(
    graph: Graph, twin: Graph, claim: LipschitzClaim, *, same: bool, seconds: float = 60.0
) -> Iterator[tuple[str, Property, Judgement]]:
    """Every property of a claim by its name, and a verdict on it.

    Args:
        graph: f.
        twin: of it, for the claim's constant, as a file holds it.
        claim: what is asked.
        same: whether nothing was rounded in that file; else f is not what is asked about, and the twin alone counts.
        seconds: for the exact constant.
    """
    bound = _exact(graph, claim, claim.farthest, seconds) if same else None
    sure = bound is not None and bound.value < claim.constant
    starts = None if sure or not same else _pairs(claim, _exact(graph, claim, 0.0, seconds))
    n, m = math.prod(graph.input_shape), math.prod(graph.output_shape)
    for name, asked in claim.properties(n, m):
        if sure and bound is not None:
            yield name, asked, Judgement(Verdict.VERIFIED, -math.inf, None, bound.seconds)
        else:
            yield name, asked, judge(twin, asked, starts=starts)


def _exact(graph: Graph, claim: LipschitzClaim, room: float, seconds: float) -> Bound | None:
    """The constant on the box of x, and ``room`` around it."""
    middle = 0.5 * claim.low + 0.5 * claim.high
    center = torch.full((1, *graph.input_shape), middle, dtype=torch.float64)
    reach = (0.5 * (claim.high - claim.low) + room) * (1.0 + 2.0**-40) + 2.0**-40 * abs(middle) + FLOOR
    task = ExactVerifier().prepare(Problem(graph, Question.on(Ball(center, reach, "inf"), claim.norm)))
    return None if isinstance(task, Refusal) else task.bound(Budget(seconds=seconds))


def _pairs(claim: LipschitzClaim, bound: Bound | None) -> Tensor | None:
    """Pairs ``(k, 2 n)`` along a witness's direction, hardly farther than the nearest, each with one largest entry."""
    witness = None if bound is None else bound.witness
    if witness is None or witness.direction is None:
        return None
    x, v = (t[:1].detach().to("cpu", torch.float64).flatten(1) for t in (witness.points, witness.direction))
    v = v / v.abs().amax().clamp_min(FLOOR)
    found: list[Tensor] = []
    for place in range(v.shape[1]):
        d = claim.nearest * (1.0 + SMALLER) * v * (1.0 - SMALLER)
        d[:, place] = d[:, place] / (1.0 - SMALLER)
        found += [torch.cat([x - share * sign * d, sign * d], 1) for sign in (1.0, -1.0) for share in (0.5, 0.0, 1.0)]
    return torch.cat(found)


__all__ = ["judge_claim"]
