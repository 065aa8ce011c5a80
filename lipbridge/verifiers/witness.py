"""The witness search as a verifier."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lipbridge.problem.bound import Bound
from lipbridge.problem.options import Option, read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.rigor.tangent_error import understood
from lipbridge.search.lower_bound import search_lower_bound
from lipbridge.vocabulary import Status

#: A search gains little after this many seconds.
ENOUGH = 20.0


def _count(name: str, default: int, told: str) -> Option:
    return Option(
        name=name,
        type=int,
        default=default,
        help=told,
        domain="be a whole number of at least 1",
        allows=lambda value: 1 <= value <= 2**31,
    )


class WitnessVerifier(Verifier):
    """The best lower bound that a search finds, proved by its witness (:func:`search_lower_bound`)."""

    name = "witness"
    summary = "lower bound with a witness point: gradient ascent over inputs and directions"
    norms = "all"
    proved = True
    options = (
        Option(name="starts", type=Tensor, default=None, help="points (n, *input_shape) to start from"),
        Option(
            name="seconds",
            type=float,
            default=ENOUGH,
            help="wall time after which the search stops; never more than the budget's",
            domain="be a number of seconds, 0 or more",
            allows=lambda value: value >= 0.0,
        ),
        _count("restarts", 32, "how many points climb at once"),
        _count("steps", 100, "steps of one climb"),
        _count("rounds", 8, "at most this many climbs, each from the best points so far"),
    )

    def prepare(self, problem: Problem) -> Task | Refusal:
        """It takes every norm pair, region and quantity, on layers whose rounding error is known."""
        reason = understood(problem.graph)
        return WitnessTask(problem) if reason is None else Refusal(self.name, reason)


class WitnessTask(Task):
    """A problem of which a witness is sought."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def bound(self, budget: Budget) -> Bound:
        """The lower bound within the budget; a search that ran out of time still has its best witness."""
        options = read_options(WitnessVerifier.name, WitnessVerifier.options, budget.options)
        starts, seconds = options.pop("starts"), min(budget.seconds, options.pop("seconds"))
        bound = search_lower_bound(self.problem, starts, seconds=seconds, seed=budget.seed, **options)
        return bound if bound.seconds < budget.seconds * 1.5 + 1.0 else replace(bound, status=Status.TIMEOUT)
