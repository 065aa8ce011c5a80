"""LipSDP on balls: the matrix inequality with the slopes that each unit has there.

For x, y in a ball every pre-activation stays in a proved interval (:mod:`lipbridge.propagation.bounds`), so each unit
has slopes of its own (:mod:`lipbridge.lipsdp.unit_slopes`), and the inequality bounds |f(x) - f(y)| / |x - y| in l_2 on
the ball, whatever the ball's norm. Kinks on the boundary of an interval count, so the bound holds for the Clarke
Jacobian at every point of the closed ball.

Several balls are regions of their own: the bound is the largest of theirs. All get the closed form; then the ball with
the largest bound is solved, again and again, until the largest is one that has been solved or time is over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp.dense_problem import DenseProblem
from lipbridge.lipsdp.multipliers import closed_form_bound
from lipbridge.lipsdp.system import LipSDP
from lipbridge.problem.bound import Bound
from lipbridge.vocabulary import Status

#: What a verifier does with one matrix inequality until a time (of ``time.perf_counter``).
Solve = Callable[[LipSDP, float], Bound]


@dataclass(eq=False)
class _Candidate:
    """A ball's best bound so far."""

    ball: int
    bound: Bound
    solved: bool = False


def bound_on_region(dense: DenseProblem, deadline: float, solve: Solve | None = None) -> Bound:
    """The proved l_2 bound of a problem that LipSDP supports, everywhere or on its balls.

    Args:
        dense: what :func:`lipbridge.lipsdp.dense_problem.l2_problem` reads.
        deadline: of ``time.perf_counter``; shared by the balls.
        solve: improves on the closed form; None for the closed form alone.

    Returns:
        A Bound of the problem's region; on balls ``extra["ball"]`` is the one with the largest bound, the multipliers
        are those of its system, and ``extra["joint"]`` says which of :meth:`DenseProblem.of_ball` that is.

    Raises:
        NumericalFailure: if no bound could be proved.

    Law: never below a witness of the region; never above the closed form's bound everywhere.
    """
    if dense.region is None:
        return closed_form_bound(dense.everywhere) if solve is None else solve(dense.everywhere, deadline)
    everywhere = _closed_form(dense.everywhere)
    candidates: list[_Candidate] = []
    for ball in range(len(dense.intervals)):
        bounds = [everywhere]
        if time.perf_counter() < deadline:  # otherwise what holds everywhere has to do
            for joint, system in zip((True, False), dense.of_ball(ball), strict=False):
                bounds.append(_labelled(_closed_form(system), joint))
        candidates.append(_Candidate(ball, min(bounds, key=_order)))
    solved = 0
    while True:
        worst = max(candidates, key=lambda candidate: _order(candidate.bound))
        if worst.solved or solve is None or time.perf_counter() >= deadline:
            break
        waiting = sum(not candidate.solved for candidate in candidates)
        _improve(dense, worst, solve, deadline, min(waiting, 4))
        solved += 1
    bound = worst.bound
    if math.isnan(bound.value):
        raise NumericalFailure("No LipSDP bound could be proved: the weights are beyond float64; rescale them.")
    if solve is not None and not worst.solved and bound.status is Status.OK:
        detail = f"The time limit was reached after {solved} of {len(candidates)} balls; the others have closed forms."
        bound = replace(bound, status=Status.TIMEOUT, detail=detail)
    where = {"ball": worst.ball} | ({"balls_solved": solved} if solve is not None and len(candidates) > 1 else {})
    # The largest of the balls' bounds, each proved of its ball or everywhere, holds on all of them.
    return replace(bound, question=dense.question, extra={**bound.extra, **where})


def _improve(dense: DenseProblem, candidate: _Candidate, solve: Solve, deadline: float, waiting: int) -> None:
    """Solve a ball's systems; an equal share of what is left of the time is for each ball that may have to follow."""
    candidate.solved = True
    now = time.perf_counter()
    until = now + (deadline - now) / waiting
    systems = dense.of_ball(candidate.ball)
    known = candidate.bound
    for index, (joint, system) in enumerate(zip((True, False), systems, strict=False)):
        begin = time.perf_counter()
        share = begin + (until - begin) / (len(systems) - index)
        try:
            found = _labelled(solve(system, share), joint)
        except NumericalFailure:
            continue  # the closed form stands
        if _order(found) <= _order(candidate.bound):
            candidate.bound = found
        elif candidate.bound is known:  # what became of the attempt is told with the closed form
            candidate.bound = replace(known, status=found.status, detail=found.detail)


def _labelled(bound: Bound, joint: bool) -> Bound:
    return replace(bound, method=f"{bound.method}, local", extra={**bound.extra, "joint": joint})


def _closed_form(system: LipSDP) -> Bound:
    """The closed form, NaN where float64 has no room for it."""
    try:
        return closed_form_bound(system)
    except NumericalFailure:
        return system.no_bound("LipSDP, closed form")


def _order(bound: Bound) -> float:
    return math.inf if math.isnan(bound.value) else bound.value
