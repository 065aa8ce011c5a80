"""The witness search as a verifier."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lipbridge.errors import InvalidArgument
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget
from lipbridge.rigor.running_error import understood
from lipbridge.search.lower_bound import search_lower_bound
from lipbridge.vocabulary import Status

#: A search gains little after this many seconds.
ENOUGH = 20.0


class WitnessVerifier:
    """The best lower bound that a search finds, proved by its witness (:func:`search_lower_bound`).

    Options of the budget: ``starts`` (tensor of points to start from), ``restarts``, ``steps``, ``rounds``, ``seconds``
    (20 unless given; never more than the budget's).
    """

    name = "witness"
    summary = "lower bound with a witness point: gradient ascent over inputs and directions"
    norms = "all"
    proved = True
    requires: tuple[str, ...] = ()
    install = ""

    def supports(self, problem: Problem) -> str | None:
        """It takes every norm pair, region and quantity, on layers whose rounding error is known."""
        return understood(problem.graph)

    def bound(self, problem: Problem, budget: Budget) -> Bound:
        """The lower bound within the budget; a search that ran out of time still has its best witness."""
        options = dict(budget.options)
        starts = options.pop("starts", None)
        if starts is not None and not isinstance(starts, Tensor):
            raise InvalidArgument("starts", "be a tensor", type(starts).__name__)
        seconds = min(budget.seconds, float(str(options.pop("seconds", ENOUGH))))
        counts = {name: _count(name, options[name]) for name in ("restarts", "steps", "rounds") if name in options}
        bound = search_lower_bound(problem, starts, seconds=seconds, seed=budget.seed, **counts)
        return bound if bound.seconds < budget.seconds * 1.5 + 1.0 else replace(bound, status=Status.TIMEOUT)


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(name, "be a whole number", value)
    return value
