"""A closed-form LipSDP bound as a verifier: no iterations, no solver."""

from __future__ import annotations

import time
from dataclasses import replace

from lipbridge.lipsdp.balls import bound_on_region
from lipbridge.lipsdp.dense_problem import DenseProblem, l2_problem
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier


class EclipseFastVerifier(Verifier):
    """The proved bound of one multiplier a layer, chosen in closed form from the output to the input.

    Source: in the manner of ECLipsE-Fast (Xu and Sivaranjani 2024), for every activation. Law: never above the
    product of the trivial bound.
    """

    name = "eclipse-fast"
    summary = "Lipschitz constant, global or in balls: one LipSDP multiplier a layer in closed form, layer by layer"
    norms = "2"
    proved = True

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Dense chains, l2 to l2, everywhere or on balls of any norm."""
        dense = l2_problem(problem)
        return Refusal(self.name, dense) if isinstance(dense, str) else _Task(dense)


class _Task(Task):
    def __init__(self, dense: DenseProblem) -> None:
        self.dense = dense

    def bound(self, budget: Budget) -> Bound:
        """The proved bound, on balls with the slopes that the units have there; never above that everywhere.

        Raises:
            NumericalFailure: for NaN weights, or a bound beyond float64.
        """
        start = time.perf_counter()
        read_options(EclipseFastVerifier.name, EclipseFastVerifier.options, budget.options)
        bound = bound_on_region(self.dense, start + budget.seconds)
        return replace(bound, seconds=time.perf_counter() - start)
