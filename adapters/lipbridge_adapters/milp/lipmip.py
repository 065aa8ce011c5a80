"""LipMIP: the largest norm of a piecewise linear network's Jacobian on balls, by mixed-integer programs, with HiGHS.

Source: Jordan and Dimakis 2020, "Exactly computing the local Lipschitz constant of ReLU networks" (arXiv 2003.01219).

What it finds, and what not:

* *Kinks.* At a kink a unit may have either slope, in the closed ball, surface included: the program's maximum is over
  all products of such slopes (the chain rule's), of which those of the Clarke Jacobian are some. In general position
  the two agree, and the maximum is the Lipschitz constant. Where kinks coincide it can be above it:
  relu(x - 1) - relu(1 - x) is x - 1, of slope 1, and by the chain rule of slope 0, 1 or 2 at 1. The witness, which lies
  inside a cell, stays below.
* *Rounding.* The value is HiGHS' dual bound, plus what its tolerances may hide (:data:`SLACK`), never the objective of
  a point. All is in floating point, and weights that a lowering multiplies are rounded: the value is a claim, not
  proved. Where a bound that is proved is smaller, it is the value, still as a claim. The witness alone is proved.
* *Regions.* Big-M constraints need bounded pre-activations, so a ball is required, of l_inf or l_1. A network without
  biases whose kinks are at zero is a cone, whose kinks all coincide at the origin: it has everywhere, and in every ball
  with the origin inside, what it has on the surface of the unit ball, and is asked there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import NumericalFailure, UnsupportedProblem
from lipbridge.problem.bound import Bound, Witness
from lipbridge.problem.options import Option, read_options
from lipbridge.problem.problem import Problem
from lipbridge.problem.question import Ball
from lipbridge.problem.verifier import Budget, Refusal, Task, Verifier
from lipbridge.vocabulary import Quantity, Side, Status
from lipbridge_adapters.milp.formulation import Pattern, column_program, entry_program, row_program
from lipbridge_adapters.milp.network import ON, Network, Reach, network_of, reach
from lipbridge_adapters.milp.points import proved_witness
from lipbridge_adapters.milp.program import Program, Vector
from lipbridge_adapters.milp.solving import highs

#: By how much, relatively, the solver's tolerances may make its dual bound too small.
SLACK = 1e-7


class LipMipVerifier(Verifier):
    """The exact constant of small networks on balls, by a solver's account; with a proved witness."""

    name = "lipmip"
    summary = "local Lipschitz constant of small piecewise linear networks: exact, by mixed-integer programs (HiGHS)"
    norms = "1, inf, 1->inf"
    proved = False
    by_default = False
    requires = ("highspy",)
    install = 'pip install "lipbridge[milp]"'
    options = (
        Option(
            name="gap",
            type=float,
            default=1e-6,
            help="relative gap between the solver's bounds at which it stops",
            domain="be at least 0 and below 1",
            allows=lambda value: 0 <= value < 1,
        ),
        Option(
            name="together",
            type=bool,
            default=None,
            help="one program that chooses the output (of l_1: the input), or one program each; l_1 to l_inf: each",
        ),
    )

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Dense chains, after lowering, of piecewise linear activations; l_1 or l_inf balls."""
        found = _read(problem)
        return Refusal(self.name, found) if isinstance(found, str) else _Task(problem, found)


def _read(problem: Problem) -> Network | str:
    """The network, or why the problem is not taken."""
    if problem.quantity is not Quantity.LIPSCHITZ:
        return "it bounds the Lipschitz constant, not the deviation from a centre"
    if (problem.input_norm, problem.output_norm) not in (("inf", "inf"), (1, 1), (1, "inf")):
        return f"it bounds constants of l_inf, l_1 and l_1 to l_inf, not the norm {problem.norm_name}"
    if problem.region is not None and problem.region.norm == 2:
        return "its programs are linear: they take l_inf and l_1 balls, not l_2 balls"
    try:
        network = network_of(problem.graph)
    except (UnsupportedProblem, NumericalFailure) as error:
        return str(error)
    if problem.region is None and not network.conic:
        return (
            "its big-M constraints need bounded pre-activations, so a network with biases, or kinks off zero, needs a "
            "region: an l_inf or l_1 ball"
        )
    return network


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some rows (columns) of the Jacobian on one ball: the largest norm that is proved, and the program of it."""

    ball: int
    index: Vector
    most: float
    reach: Reach
    program: Callable[[Vector], tuple[Program, Pattern]]


class _Task(Task):
    def __init__(self, problem: Problem, network: Network) -> None:
        self.problem, self.network = problem, network

    def bound(self, budget: Budget) -> Bound:
        """The solver's dual bound; see the module for what it means.

        Outputs (of l_1: inputs) are taken in the order of their Jacobian bounds, until those that are left cannot be
        the largest. At the time limit the value is the dual bounds so far, and the Jacobian bounds of the rest.

        ``extra`` has the best point's ``primal`` objective, the relative ``gap``, the tree's ``nodes``, the number of
        ``programs``, the binding ``output`` or ``input`` and, where the pattern found has an inside, the ``lower``
        bound that the ``witness`` proves.

        Raises:
            NumericalFailure: for NaN weights, or bounds beyond float64.
        """
        start = time.perf_counter()
        options = read_options(LipMipVerifier.name, LipMipVerifier.options, budget.options)
        together = options["together"]
        if together is None:  # measured: one program is the faster, but for the largest entry (docs/guide/verifiers.md)
            together = self.problem.input_norm == self.problem.output_norm
        run = _Run(self, options["gap"], together, budget, start + 0.95 * budget.seconds)
        run.all()
        trivial = trivial_bound(self.problem.graph, self.problem.input_norm, self.problem.output_norm).value
        value = min(run.value, trivial)
        extra: dict[str, object] = {"programs": run.programs, "nodes": run.nodes}
        if run.primal is not None:
            extra |= {"primal": run.primal, "gap": max(1.0 - run.primal / value, 0.0) if value > 0 else 0.0}
        if run.binding is not None:
            if self.problem.region is not None:
                extra["ball"] = run.binding.ball
            if len(run.binding.index) == 1:
                extra["output" if self.by_rows else "input"] = int(run.binding.index[0])
        if run.witness is not None:
            extra["lower"] = run.lower
        detail = "A claim of a solver, not proved."
        if run.status is Status.TIMEOUT:
            detail = f"The time limit was reached: the value is the solver's dual bound so far. {detail}"
        elif run.status is not Status.OK:
            value, detail = math.nan, run.detail
        return Bound(
            value=value,
            side=Side.UPPER,
            proved=False,
            question=self.problem.question,
            method="LipMIP, HiGHS",
            seconds=time.perf_counter() - start,
            status=run.status,
            detail=detail,
            witness=run.witness,
            extra=extra,
        )

    @property
    def by_rows(self) -> bool:
        """Whether a program is about an output; otherwise about an input."""
        return self.problem.output_norm == "inf"


class _Run:
    """The programs of one problem against a deadline; afterwards ``value`` is what is claimed of them all."""

    def __init__(self, task: _Task, gap: float, together: bool, budget: Budget, deadline: float) -> None:
        self.task, self.gap, self.together, self.budget, self.deadline = task, gap, together, budget, deadline
        self.value, self.lower = 0.0, 0.0
        self.primal: float | None = None
        self.binding: _Piece | None = None
        self.witness: Witness | None = None
        self.nodes = self.programs = 0
        self.status, self.detail = Status.OK, ""

    def all(self) -> None:
        """Solve for every piece that may be the largest, those of the largest proved bounds first."""
        region = self.task.problem.region
        balls: list[Ball | None] = [None]
        if region is not None:
            balls = [Ball(center[None], region.radius, region.norm) for center in region.centers]
        pieces = [piece for ball, own in enumerate(balls) for piece in self._pieces(ball, own)]
        pieces.sort(key=lambda piece: -piece.most)
        for place, piece in enumerate(pieces):
            if piece.most <= self.value:
                return
            seconds = self.deadline - time.perf_counter()
            if seconds <= 0.0:
                self.status, value = Status.TIMEOUT, piece.most
            else:
                value = self._solved(piece, seconds / (len(pieces) - place))
            if value > self.value:
                self.value, self.binding = value, piece
            if self.status is Status.FAILED:
                return

    def _pieces(self, ball: int, region: Ball | None) -> list[_Piece]:
        reached = reach(self.task.network, region)
        if self.task.by_rows:
            cotangents, entries = reached.cotangents()
            size = np.maximum(-entries[0], entries[1])
            most = size.sum(1) if self.task.problem.input_norm == "inf" else size.max(1)
            made = row_program if self.task.problem.input_norm == "inf" else entry_program

            def program(index: Vector) -> tuple[Program, Pattern]:
                return made(reached, index, cotangents, entries)
        else:
            tangents = reached.tangents()
            most = np.maximum(-tangents[-1][0], tangents[-1][1]).sum(0)

            def program(index: Vector) -> tuple[Program, Pattern]:
                return column_program(reached, index, tangents)

        if not np.isfinite(most).all():
            raise NumericalFailure("The bounds of the Jacobian on the region are beyond float64.")
        most = most * (1.0 + SLACK)
        every = np.arange(len(most))
        groups = [every] if self.together else list(every[:, None])
        return [_Piece(ball, group, float(most[group].max()), reached, program) for group in groups]

    def _solved(self, piece: _Piece, seconds: float) -> float:
        """What the solver claims of a piece, never above what is proved of it."""
        program, pattern = piece.program(piece.index)
        if program.objective.known:
            if all(np.all(own < 0) for own in pattern.slopes):
                self._try(piece, [_numbers(own, np.zeros(1)) for own in pattern.slopes])
            return min(float(program.objective.constant[0]) * (1.0 + SLACK), piece.most)
        answer = highs(program.scaled(), seconds, gap=self.gap, seed=self.budget.seed)
        self.programs, self.nodes = self.programs + 1, self.nodes + answer.nodes
        if answer.timed_out:
            self.status = Status.TIMEOUT
        elif not answer.optimal:
            self.status, self.detail = Status.FAILED, f"HiGHS ended with the status `{answer.status}`."
            return piece.most
        if answer.point is not None:
            self.primal = max(answer.primal, self.primal or 0.0)
            self._try(piece, [_numbers(own, answer.point) for own in pattern.slopes])
        return min(max(answer.dual, 0.0) * (1.0 + SLACK), piece.most)

    def _try(self, piece: _Piece, slopes: list[Vector]) -> None:
        found = proved_witness(self.task.problem, piece.reach, slopes)
        if found is not None and found[0] > self.lower:
            self.lower, self.witness = found


def _numbers(columns: Vector, point: Vector) -> Vector:
    """The slopes of 0 and 1 at a program's point."""
    known = (columns == ON).astype(float)
    return np.where(columns >= 0, np.round(point[np.maximum(columns, 0)]), known)


__all__ = ["SLACK", "LipMipVerifier"]
