"""The trivial bound as a verifier."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lipbridge.constants.trivial import trivial_bound
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.problem.bound import Bound
from lipbridge.problem.options import read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.robustness.radii import certified_radii
from lipbridge.vocabulary import Quantity


class TrivialVerifier(Verifier):
    """The product of the layers' operator norms, proved (:func:`lipbridge.trivial_bound`)."""

    name = "trivial"
    summary = "global Lipschitz constant: product of the layers' operator norms"
    norms = "1, 2, inf, 1->2, 1->inf, 2->inf"
    proved = True
    certifies = True

    def prepare(self, problem: Problem) -> Task | Refusal:
        """It takes every Graph; inf->1, inf->2 and 2->1 are NP-hard."""
        if problem.quantity is not Quantity.LIPSCHITZ:
            return Refusal(self.name, "it bounds the Lipschitz constant, not the deviation from a centre")
        if (problem.input_norm, problem.output_norm) not in CHEAP_PAIRS:
            return Refusal(self.name, f"the norm {problem.norm_name} of a matrix is NP-hard")
        return TrivialTask(problem)


class TrivialTask(Task):
    """A problem whose trivial bound is wanted."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def bound(self, budget: Budget) -> Bound:
        """The trivial bound. It holds everywhere, so it holds on a smaller region too."""
        read_options(TrivialVerifier.name, TrivialVerifier.options, budget.options)
        problem = self.problem
        bound = trivial_bound(problem.graph, problem.input_norm, problem.output_norm)
        return replace(bound, question=problem.question)

    def certify(self, inputs: Tensor, labels: Tensor, radius: float, budget: Budget) -> Tensor:
        """By margin and pairwise constants (:func:`lipbridge.robustness.radii.certified_radii`), proved."""
        return certified_radii(self.problem.graph, inputs, labels, self.problem.input_norm) > radius
