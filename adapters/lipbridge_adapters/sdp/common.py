"""What the SDP verifiers share: limits, the closed form to fall back on, and the proof of what a solver returns.

A form of the program (one inequality, overlapping blocks, layer by layer) only says which blocks to solve and which
multipliers its solution means.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp.balls import bound_on_region
from lipbridge.lipsdp.blocks import Blocks, Floats
from lipbridge.lipsdp.dense_problem import DenseProblem, l2_problem
from lipbridge.lipsdp.multipliers import closed_form_bound, prove_from_multipliers
from lipbridge.lipsdp.system import LipSDP
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task
from lipbridge.vocabulary import Status
from lipbridge_adapters.sdp.options import Options, predicted_memory, too_large
from lipbridge_adapters.sdp.solve import TOO_LARGE, Answer, solve
from lipbridge_adapters.sdp.verifier import CvxpyVerifier

CLOSED_FORM = "the bound is that of the closed-form feasible multipliers."


class Run:
    """A solver's runs for one matrix inequality, against one deadline (of ``time.perf_counter``)."""

    def __init__(self, options: Options, deadline: float, memory: float) -> None:
        self.options, self.deadline, self.memory = options, deadline, memory
        self.last = Answer(None, "not started", 0.0)
        self.seconds, self.stopped = 0.0, ""

    @property
    def in_time(self) -> bool:
        """Whether there is time for another run."""
        return time.perf_counter() < self.deadline

    def solve(self, blocks: Blocks, deadline: float = math.inf) -> Floats | None:
        """A solution, perhaps not feasible or optimal, or None."""
        self.last = solve(blocks, self.options, min(deadline, self.deadline), self.memory)
        self.seconds += self.last.seconds
        self.stopped = self.stopped or (self.last.detail if self.last.timed_out else "")
        return self.last.point


class SDPVerifier(CvxpyVerifier):
    """Base of the verifiers that ask a solver for multipliers and prove the bound that these give."""

    #: How its bounds are labelled, before the solver's name.
    method: str
    norms = "2"
    proved = True

    @abstractmethod
    def size(self, system: LipSDP) -> tuple[int, int]:
        """``(entries, cells)`` of the largest program that is held at once."""

    @abstractmethod
    def multipliers(self, system: LipSDP, run: Run) -> Sequence[Tensor] | None:
        """What the solver's solution says, ``(constraints, u)`` a stage, trusted in nothing; None if it gave none."""

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Dense chains, l2 to l2, everywhere or on balls of any norm."""
        dense = l2_problem(problem)
        return Refusal(self.name, dense) if isinstance(dense, str) else _Task(self, dense)


class _Task(Task):
    def __init__(self, form: SDPVerifier, dense: DenseProblem) -> None:
        self.form, self.dense = form, dense

    def bound(self, budget: Budget) -> Bound:
        """A proved upper bound, never a raw objective and never above the closed form's.

        The time limit ends a solver that has no limit of its own; what cannot be interrupted is cvxpy's building of
        the program, which is not begun if it would not fit.

        Raises:
            LipbridgeError: for a solver that is not installed, with those that are.
        """
        start = time.perf_counter()
        options = self.form.solver_options(budget.options)

        def solved(system: LipSDP, deadline: float) -> Bound:
            return self._bound_system(system, options, deadline, budget.memory)

        bound = bound_on_region(self.dense, start + budget.seconds, solved)
        return replace(bound, seconds=time.perf_counter() - start)

    def _bound_system(self, system: LipSDP, options: Options, deadline: float, memory: float) -> Bound:
        if system.constant or not any(stage.increments.variables for stage in system.stages):
            return replace(closed_form_bound(system), method=f"{self.form.method}, closed form")
        method = f"{self.form.method}, {options.solver}"
        why = too_large(options.solver, predicted_memory(*self.form.size(system), options.solver), memory)
        if why:
            return system.no_bound(method, status=Status.MEMORY, detail=f"{why}.")
        begin = time.perf_counter()
        fallback = closed_form_bound(system)
        for_the_proof = min(5.0 * fallback.seconds, 0.3 * (deadline - begin))
        run = Run(options, deadline - for_the_proof, memory)
        vectors = self.form.multipliers(system, run)
        status, detail = Status.OK, run.stopped
        if vectors is None:
            status = Status.MEMORY if run.last.status == TOO_LARGE else Status.FAILED
            reason = run.last.detail or f"{options.solver} returned no multipliers ({run.last.status})"
            bound, detail = fallback, f"{reason}: {CLOSED_FORM}"
        else:
            bound = _proved(system, vectors, method, fallback)
        status = Status.TIMEOUT if run.stopped else status
        extra = {"solver": options.solver, "solver_status": run.last.status, "solver_seconds": run.seconds}
        return replace(bound, status=status, detail=detail, extra=extra)


def _proved(system: LipSDP, vectors: Sequence[Tensor], method: str, fallback: Bound) -> Bound:
    try:
        bound = prove_from_multipliers(system, system.multipliers(vectors), method)
    except NumericalFailure:
        return fallback
    return bound if bound.value <= fallback.value else fallback
