"""A closed-form LipSDP bound as a verifier: no iterations, no solver."""

from __future__ import annotations

import time
from dataclasses import replace

from lipbridge.errors import UnsupportedProblem
from lipbridge.lipsdp.balls import bound_on_region
from lipbridge.lipsdp.multipliers import unsupported
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget


class EclipseFastVerifier:
    """The proved bound of one multiplier a layer, chosen in closed form from the output to the input.

    Source: in the manner of ECLipsE-Fast (Xu and Sivaranjani 2024), for every activation. Law: never above the
    product of the trivial bound.
    """

    name = "eclipse-fast"
    summary = "Lipschitz constant, global or in balls: one LipSDP multiplier a layer in closed form, layer by layer"
    norms = "2"
    proved = True
    requires: tuple[str, ...] = ()
    install = ""

    def supports(self, problem: Problem) -> str | None:
        """Dense chains, l2 to l2, everywhere or on balls of any norm."""
        return unsupported(problem)

    def bound(self, problem: Problem, budget: Budget) -> Bound:
        """The proved bound, on balls with the slopes that the units have there; never above that everywhere.

        Raises:
            UnsupportedProblem: if :meth:`supports` gives a reason.
            NumericalFailure: for NaN weights, or a bound beyond float64.
        """
        start = time.perf_counter()
        reason = self.supports(problem)
        if reason is not None:
            raise UnsupportedProblem(f"`{self.name}` cannot take this problem: {reason}.")
        bound = bound_on_region(problem, start + budget.seconds)
        return replace(bound, seconds=time.perf_counter() - start)
