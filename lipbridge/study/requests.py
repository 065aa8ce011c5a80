"""One verifier on one problem in memory, to be answered in a process of its own; and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.verifiers import Budget
from lipbridge.vocabulary import Side, Status


@dataclass(frozen=True, eq=False)
class Certification:
    """Points whose predictions a verifier is asked to certify too: ``inputs`` (n, *input_shape), ``labels`` (n,)."""

    inputs: Tensor
    labels: Tensor
    radius: float


@dataclass(frozen=True, eq=False)
class Request:
    """One verifier on one problem within a budget; ``certification`` is asked of verifiers that can certify."""

    network: str
    problem: Problem
    verifier: str
    budget: Budget
    certification: Certification | None = None
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a request. ``total_seconds`` is the whole process, with interpreter start and imports."""

    bound: Bound
    total_seconds: float


def failed(problem: Problem, verifier: str, status: Status, detail: str, seconds: float = 0.0) -> Bound:
    """The Bound of a verifier that gave none."""
    side = Side.LOWER if verifier == "witness" else Side.UPPER
    return Bound(
        value=math.nan,
        side=side,
        proved=False,
        question=problem.question,
        method=verifier,
        seconds=seconds,
        status=status,
        detail=detail,
    )
