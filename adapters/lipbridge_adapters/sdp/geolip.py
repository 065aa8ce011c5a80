"""GeoLIP through cvxpy: SDP bounds of the l_inf and l_1 constants, each proved again from the solver's multipliers.

Source: Wang, Prakriya and Jha 2022, "A quantitative geometric approach to neural-network smoothness". The programs,
for every activation, and their proofs are in :mod:`lipbridge.lipsdp.linf`; this file hands them to a solver.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lipbridge.constants.trivial import trivial_bound
from lipbridge.errors import NumericalFailure
from lipbridge.lipsdp.blocks import Block, Blocks
from lipbridge.lipsdp.dense_problem import DenseProblem
from lipbridge.lipsdp.linf import Multipliers, Piece, closed_form, ends_problem, pieces_of, prove_piece
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task
from lipbridge.vocabulary import Side, Status
from lipbridge_adapters.sdp.options import Options, predicted_memory, too_large
from lipbridge_adapters.sdp.solve import solve
from lipbridge_adapters.sdp.verifier import CvxpyVerifier

Vector = NDArray[Any]


def predicted_size(piece: Piece) -> tuple[int, int]:
    """Nonzeros of the program's matrix, as if no weight were zero, and its cells (order of the inequality squared)."""
    system = piece.system
    columns = system.entry.shape[1]
    ends = 0 if piece.norm == "inf" else piece.free
    entries = columns + ends
    for stage in system.stages:
        rule = stage.increments
        entries += rule.constraints * stage.width * (columns * (columns + 1) // 2) + rule.variables * stage.width
        columns += rule.variables * stage.width
    return entries, (columns + ends) ** 2


class GeoLipVerifier(CvxpyVerifier):
    """The least l_inf or l_1 bound that diagonal multipliers give, output by output (input by input); proved."""

    name = "geolip"
    summary = "global Lipschitz constant for l_inf or l_1: a semidefinite program an output or input (GeoLIP)"
    norms = "1, inf"
    proved = True

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Dense chains, l_inf to l_inf or l_1 to l_1. The bound is global, so it holds on any region."""
        dense = ends_problem(problem)
        return Refusal(self.name, dense) if isinstance(dense, str) else _Task(problem, dense)


class _Task(Task):
    def __init__(self, problem: Problem, dense: DenseProblem) -> None:
        self.problem, self.dense = problem, dense

    def bound(self, budget: Budget) -> Bound:
        """A proved upper bound, never above the trivial one; never a raw objective.

        The outputs (of l_1: the inputs) are taken in the order of their trivial bounds, until those that are left
        cannot be the largest. At the time limit the rest keep their closed form's or their trivial bounds.

        ``extra`` tells how many programs were solved, and which output or input gave the bound.

        Raises:
            LipbridgeError: for a solver that is not installed, with those that are.
        """
        start = time.perf_counter()
        problem, options = self.problem, GeoLipVerifier.solver_options(budget.options)
        trivial = trivial_bound(problem.graph, problem.input_norm)
        pieces = pieces_of(self.dense.chain, problem.input_norm)
        method = f"GeoLIP, {options.solver}"
        sizes = [predicted_size(piece) for piece in pieces if piece.system.stages and not piece.system.constant]
        estimate = predicted_memory(*max(sizes), options.solver) if sizes else 0
        why = too_large(options.solver, estimate, budget.memory)
        if why:
            return Bound(
                value=math.nan,
                side=Side.UPPER,
                proved=False,
                question=problem.question,
                method=method,
                seconds=time.perf_counter() - start,
                status=Status.MEMORY,
                detail=f"{why}.",
            )
        run = _Run(options, start + 0.9 * budget.seconds, budget.memory)
        run.all(pieces)
        value = min(run.value, trivial.value)
        if value == trivial.value:
            method = f"trivial bound ({method} is no better)"
        where = "output" if problem.input_norm == "inf" else "input"
        extra: dict[str, object] = {"solver": options.solver, "programs": run.solved, f"{where}s": len(pieces)}
        if run.binding is not None:
            extra[where] = run.binding
        status = Status.TIMEOUT if run.timed_out else Status.FAILED if run.failures else Status.OK
        detail = run.failures[0] if run.failures else ""
        if run.timed_out:
            detail = (
                f"The time limit was reached at {run.left_over} of {len(pieces)} {where}s: what they had was proved."
            )
        return Bound(
            value=value,
            side=Side.UPPER,
            proved=True,
            question=problem.question,
            method=method,
            seconds=time.perf_counter() - start,
            status=status,
            detail=detail,
            extra=extra,
            multipliers=run.multipliers,
        )


class _Run:
    """The programs of one problem against a deadline; afterwards ``value`` bounds the largest of its pieces."""

    def __init__(self, options: Options, deadline: float, memory: float) -> None:
        self.options, self.deadline, self.memory = options, deadline, memory
        self.value, self.solved, self.left_over, self.timed_out = 0.0, 0, 0, False
        self.binding: int | None = None
        self.multipliers: dict[str, torch.Tensor] | None = None
        self.failures: list[str] = []

    def all(self, pieces: list[Piece]) -> None:
        """Bound every piece that may be the largest, those of the largest trivial bounds first."""
        for place, piece in enumerate(pieces):
            if piece.trivial <= self.value:
                return
            share = (self.deadline - time.perf_counter()) / (len(pieces) - place)
            value, claim = self._piece(piece, share)
            if value > self.value:
                self.value, self.binding = value, piece.index
                self.multipliers = None if claim is None else _named(piece, claim)

    def _piece(self, piece: Piece, seconds: float) -> tuple[float, Multipliers | None]:
        if piece.system.constant or not piece.system.stages:
            return (piece.rounding if piece.system.constant else piece.trivial), None
        if seconds <= 0:
            self.timed_out, self.left_over = True, self.left_over + 1
            return piece.trivial, None
        try:
            form = closed_form(piece)
            value, claim = prove_piece(piece, form), form
            found = self._solve(piece, form, seconds)
            if found is not None:
                self.solved += 1
                better = prove_piece(piece, found)
                if better < value:
                    return better, found
        except NumericalFailure as failure:
            self.failures.append(str(failure))
            return piece.trivial, None
        return value, claim

    def _solve(self, piece: Piece, form: Multipliers, seconds: float) -> Multipliers | None:
        answer = solve(_program(piece, form), self.options, time.perf_counter() + seconds, self.memory)
        if answer.timed_out:
            self.timed_out, self.left_over = True, self.left_over + 1
        if answer.point is None:
            if not answer.timed_out:
                self.failures.append(f"{self.options.solver} returned no multipliers ({answer.status}).")
            return None
        x = torch.tensor(np.maximum(answer.point[1:], 0.0))
        ends, start = x[: piece.free] * form.ends, piece.free + (0 if piece.norm == "inf" else 1)
        inner: list[torch.Tensor] = []
        for T in form.inner:
            inner.append(x[start : start + T.numel()].reshape(T.shape) * T)
            start += T.numel()
        return Multipliers(inner, ends)


def _named(piece: Piece, claim: Multipliers) -> dict[str, torch.Tensor]:
    return {"d" if piece.norm == "inf" else "w": claim.ends, **piece.system.multipliers(claim.inner)}


def _program(piece: Piece, form: Multipliers) -> Blocks:
    """The program in units of the closed form: all ones is feasible, and the diagonal is of size one.

    Variable 0 is what is minimised: a block of one row says that it is at least the objective. Then come the ends (d or
    w), for l_1 rho, then T stage by stage. The rows of the inequality are the inputs, the free variables q and, for
    l_1, the outputs: the block [F O'; O diag(w)] says ``F >= O' diag(1/w) O``.
    """
    system, ends = piece.system, form.ends.numpy()
    n, box = system.entry.shape[1], piece.norm == "inf"
    free = [stage.increments.variables * stage.width for stage in system.stages]
    order = n + sum(free) + (0 if box else piece.free)
    scale = np.ones(order)
    rows: list[Vector] = []
    columns: list[Vector] = []
    values: list[Vector] = []
    count = 1

    def add(row: Vector, column: Vector, value: Vector) -> None:
        """The coefficients of the next variable."""
        nonlocal count
        rows.append(row.astype(np.int64) + column.astype(np.int64) * order)
        columns.append(np.full(len(row), count))
        values.append(value)
        count += 1

    one = np.ones(1)
    for i in range(piece.free):
        at = np.array([i if box else order - piece.free + i])
        add(at, at, ends[i] * one)
        scale[at] = 1.0 / np.sqrt(max(ends[i], 1e-300)) if ends[i] > 0 else 1.0
    rho = 0.0
    if not box:
        rho = float(ends.sum())
        add(np.zeros(1), np.zeros(1), rho * one)
        scale[0] = 1.0 / np.sqrt(rho) if rho > 0 else 1.0
    Z = np.zeros((len(system.entry), order))
    Z[:, :n] = system.entry.numpy()
    start = n
    for stage, T in zip(system.stages, form.inner, strict=True):
        rule, u = stage.increments, stage.width
        E = rule.outputs.numpy()
        for c in range(rule.constraints):
            own = [j for j, group in enumerate(rule.group) if group == c]
            for i in range(u):
                t = float(T[c, i])
                support = np.flatnonzero(Z[i])
                low, high = np.tril_indices(len(support))
                places = np.array([start + j * u + i for j in own])
                products = -t * Z[i, support[low]] * Z[i, support[high]]
                add(
                    np.concatenate([support[low], places]),
                    np.concatenate([support[high], places]),
                    np.concatenate([products, np.full(len(own), t)]),
                )
                scale[places] = 1.0 / np.sqrt(t) if t > 0 else 1.0
        blocks: list[Vector] = []
        for k in range(rule.components):
            Y = E[k, 0] * Z
            for j in range(rule.variables):
                places = start + j * u + np.arange(u)
                Y[np.arange(u), places] += E[k, 1 + j]
            blocks.append(Y)
        Z = stage.weight.numpy() @ np.concatenate(blocks)
        start += rule.variables * u
    constant = np.zeros((order, order))
    if box:
        constant -= Z.T @ Z
    else:
        constant[order - piece.free :] = Z
        constant[:, order - piece.free :] = Z.T
    constant *= scale[:, None] * scale
    place, variable_of = np.concatenate(rows), np.concatenate(columns)
    row, column = place % order, place // order
    value = np.concatenate(values) * scale[row] * scale[column]
    total = float(ends.sum()) or 1.0
    prices = ends / total if box else np.append(ends, rho) / total
    zeros = np.zeros(1 + len(prices), dtype=np.int64)
    objective = Block(1, zeros, zeros, np.arange(1 + len(prices)), np.concatenate([one, -prices]), np.zeros((1, 1)))
    matrices = _blocks((row, column, variable_of, value), constant)
    return Blocks((objective, *matrices), (), ((1, count - 1),))


def _blocks(entries: tuple[Vector, Vector, Vector, Vector], constant: Vector) -> list[Block]:
    """One semidefinite constraint for every set of rows that the inequality ties together (abs and sin cut it)."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    row, column, variable_of, value = entries
    order = len(constant)
    # In int32: with scipy 1.11 wider indices fail inside csgraph, which then returns what is no answer.
    places = (row.astype(np.int32), column.astype(np.int32))
    ends = tuple(index.astype(np.int32) for index in np.nonzero(constant))
    tied = sparse.coo_array((np.ones(len(row)), places), shape=(order, order))
    tied += sparse.coo_array((np.ones(len(ends[0])), ends), shape=(order, order))
    number, label = connected_components(tied, directed=False)
    found: list[Block] = []
    for block in range(number):
        members = np.flatnonzero(label == block)
        place = np.zeros(order, dtype=np.int64)
        place[members] = np.arange(len(members))
        own = label[row] == block
        inside = constant[np.ix_(members, members)]
        found.append(Block(len(members), place[row[own]], place[column[own]], variable_of[own], value[own], inside))
    return found
