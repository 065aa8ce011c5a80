"""LipSDP on networks with convolutions: one multiplier a channel, and no matrix of a convolution.

The multipliers of a channel's positions are equal, so that the matrix inequality keeps the convolutions' structure. The
bound is the product of the scaled layers' norms (:mod:`lipbridge.channels`), which is LipSDP's for slopes in [-1, 1]
and for joint polyactivations.
"""

from __future__ import annotations

import time

from lipbridge.bounds import Bound, Problem, trivial_bound
from lipbridge.channels import best_factors, channel_chain, ones, proved_product
from lipbridge.errors import UnsupportedProblem
from lipbridge.graph import Conv, MaxPool
from lipbridge.verifiers.lmi_system import name
from lipbridge.vocabulary import Quantity, Side, Status

METHOD = "LipSDP, one multiplier a channel"


def unsupported_by_channels(problem: Problem) -> str | None:
    """None if one multiplier a channel can bound the problem, otherwise the reason why not, in one line."""
    if problem.quantity is not Quantity.LIPSCHITZ:
        return "it bounds the Lipschitz constant, not the deviation from a centre"
    if (problem.input_norm, problem.output_norm) != (2, 2):
        return f"it bounds the l2 constant, not the norm {problem.norm_name}"
    if problem.region is not None:
        return "convolutions that are too large for a matrix are bounded everywhere, not on balls"
    try:
        channel_chain(problem.graph)
    except UnsupportedProblem as error:
        return str(error)
    return None


def has_convolutions(problem: Problem) -> bool:
    """Whether the Graph has layers that a channel's multiplier is for."""
    return any(isinstance(node, Conv | MaxPool) for node in problem.graph)


def bound_by_channels(problem: Problem, deadline: float) -> Bound:
    """The proved bound of the best multipliers by a time of ``time.perf_counter``, never above the trivial bound.

    Raises:
        NumericalFailure: for NaN weights, or a bound beyond float64.
    """
    start = time.perf_counter()
    chain = channel_chain(problem.graph)
    factors = ones(chain)
    value = proved_product(chain, factors)
    best = best_factors(chain, deadline)
    late = time.perf_counter() > deadline
    found = proved_product(chain, best)
    if found < value:
        value, factors = found, best
    value = min(value, trivial_bound(problem.graph).value)
    return Bound(
        value,
        Side.UPPER,
        True,
        "2",
        METHOD,
        seconds=time.perf_counter() - start,
        status=Status.TIMEOUT if late else Status.OK,
        detail="The time limit was reached; the multipliers so far were proved." if late else "",
        multipliers={name(index): d.square() for index, d in enumerate(factors, start=1)},
    )
