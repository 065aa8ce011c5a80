"""The trivial bound as a verifier."""

from __future__ import annotations

from torch import Tensor

from lipbridge.constants.trivial import trivial_bound
from lipbridge.graph.graph import Graph
from lipbridge.norms.matrix import CHEAP_PAIRS
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget
from lipbridge.robustness.radii import certified_radii
from lipbridge.vocabulary import Norm, Quantity


class TrivialVerifier:
    """The product of the layers' operator norms, proved (:func:`lipbridge.trivial_bound`)."""

    name = "trivial"
    summary = "global Lipschitz constant: product of the layers' operator norms"
    norms = "1, 2, inf, 1->2, 1->inf, 2->inf"
    proved = True
    requires: tuple[str, ...] = ()
    install = ""

    def supports(self, problem: Problem) -> str | None:
        """It takes every Graph; inf->1, inf->2 and 2->1 are NP-hard."""
        if problem.quantity is not Quantity.LIPSCHITZ:
            return "it bounds the Lipschitz constant, not the deviation from a centre"
        if (problem.input_norm, problem.output_norm) not in CHEAP_PAIRS:
            return f"the norm {problem.norm_name} of a matrix is NP-hard"
        return None

    def bound(self, problem: Problem, budget: Budget) -> Bound:
        """The trivial bound. It holds everywhere, so it holds on a smaller region too."""
        return trivial_bound(problem.graph, problem.input_norm, problem.output_norm)

    def certify(
        self, graph: Graph, inputs: Tensor, labels: Tensor, radius: float, norm: Norm, budget: Budget
    ) -> Tensor:
        """By margin and pairwise constants (:func:`lipbridge.robustness.radii.certified_radii`), proved."""
        return certified_radii(graph, inputs, labels, norm) > radius
