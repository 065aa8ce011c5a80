"""The exact constant of a piecewise linear network as a verifier."""

from __future__ import annotations

from lipbridge.branch_and_bound.cascade import Cascade
from lipbridge.branch_and_bound.exact import exact_constant, read
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.vocabulary import Quantity


class ExactVerifier(Verifier):
    """Branch and bound over the pieces of activations: the exact constant, or proved bounds on both sides of it."""

    name = "exact"
    summary = "exact Lipschitz constant of a small piecewise linear network, global or in balls: branch and bound"
    norms = "1, 2, inf, 1->2, 1->inf, 2->inf"
    proved = True
    by_default = False

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Networks of linear nodes, piecewise linear activations, max pooling and sorting; cheap pairs of norms."""
        if problem.quantity is not Quantity.LIPSCHITZ:
            return Refusal(self.name, "it bounds the Lipschitz constant, not the deviation from a centre")
        if (problem.input_norm, problem.output_norm) not in CHEAP_PAIRS:
            return Refusal(self.name, f"the norm {problem.norm_name} of a matrix is NP-hard")
        cascade = problem.once(read)
        return Refusal(self.name, cascade) if isinstance(cascade, str) else _Task(problem, cascade)


class _Task(Task):
    def __init__(self, problem: Problem, cascade: Cascade) -> None:
        self.problem, self.cascade = problem, cascade

    def bound(self, budget: Budget) -> Bound:
        """The exact constant, or at a limit the proved upper bound, with the lower one in ``extra["lower"]``.

        Raises:
            NumericalFailure: for NaN weights, or numbers beyond float64.
        """
        read_options(ExactVerifier.name, ExactVerifier.options, budget.options)
        return exact_constant(
            self.problem, self.cascade, seconds=budget.seconds, memory=budget.memory, seed=budget.seed
        )
