"""LipSDP with full multiplier matrices, as first published: NOT a bound. For studies of that mistake only.

The first version of LipSDP let T_l be ``sum lambda_ij (e_i - e_j)(e_i - e_j)' + diag``, lambda >= 0, on the claim that
differences of units obey the constraint of one unit. They do not: units see different points. The value can lie below
the true constant: ``relu(x + 1) - relu(x - 1)`` has constant 1, and the value is about 1e-5.

Source: Fazlyab et al. 2019 (the "network" mode); refuted by Pauli, Koch, Berberich, Kohler, Allgoewer 2021.
"""

from __future__ import annotations

import math
import time
import warnings
from importlib import import_module
from typing import Any

import numpy as np

from lipbridge.lipsdp.blocks import Floats
from lipbridge.lipsdp.dense_problem import DenseProblem, l2_problem
from lipbridge.lipsdp.system import LipSDP
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.problem.verifier import Budget, Refusal, Task
from lipbridge.vocabulary import Side, Status
from lipbridge_adapters.sdp.options import Options, predicted_memory, too_large
from lipbridge_adapters.sdp.verifier import CvxpyVerifier

WARNING = "not a bound: full multiplier matrices are unsound (an error of the first LipSDP paper, kept for studies)"


class LipSDPNetworkVerifier(CvxpyVerifier):
    """The value of the refuted variant. Never proved, and left out of comparisons that do not name it."""

    name = "lipsdp-network"
    summary = "UNSOUND, for studies only: LipSDP with full multiplier matrices, whose value may be below the constant"
    norms = "2"
    proved = False
    by_default = False

    def prepare(self, problem: Problem) -> Task | Refusal:
        """Dense chains, l2 to l2."""
        dense = l2_problem(problem)
        return Refusal(self.name, dense) if isinstance(dense, str) else _Task(problem, dense)


class _Task(Task):
    def __init__(self, problem: Problem, dense: DenseProblem) -> None:
        self.problem, self.dense = problem, dense

    def bound(self, budget: Budget) -> Bound:
        """The solver's raw objective.

        Raises:
            LipbridgeError: for a solver that is not installed, with those that are.
        """
        start = time.perf_counter()
        options = LipSDPNetworkVerifier.solver_options(budget.options)
        cvxpy: Any = import_module("cvxpy")
        system = self.dense.everywhere
        value, status, detail = math.nan, Status.OK, WARNING
        why = too_large(options.solver, predicted_memory(*_size(system), options.solver), budget.memory)
        if why:
            status, detail = Status.MEMORY, f"{why}; {WARNING}"
        else:
            value, told = (0.0, "constant") if system.constant else _value(cvxpy, system, options, budget.seconds)
            if math.isnan(value):
                status = Status.TIMEOUT if time.perf_counter() - start > 0.9 * budget.seconds else Status.FAILED
                detail = f"{told}; {WARNING}"
        method = f"LipSDP-Network (unsound), {options.solver}"
        return Bound(
            value=value,
            side=Side.UPPER,
            proved=False,
            question=self.problem.question,
            method=method,
            seconds=time.perf_counter() - start,
            status=status,
            detail=detail,
        )


def _size(system: LipSDP) -> tuple[int, int]:
    size = min(system.entry.shape) + sum(stage.increments.variables * stage.width for stage in system.stages)
    return sum(stage.increments.constraints * stage.width**2 for stage in system.stages) * size * size // 2, size * size


def _value(cvxpy: Any, system: LipSDP, options: Options, seconds: float) -> tuple[float, str]:
    """The root of the least rho of the refuted program, or NaN, and the solver's status."""
    rows, state, n = _states(system)
    rho = cvxpy.Variable(nonneg=True)
    inputs = np.zeros(len(state.T))
    inputs[:n] = 1.0
    total: Any = rho * np.diag(inputs) - state.T @ state
    constraints: list[Any] = []
    for z, groups in rows:
        for variables in groups:
            T = cvxpy.Variable((len(z), len(z)), symmetric=True)
            off_diagonal = cvxpy.multiply(T, 1.0 - np.eye(len(z)))
            constraints += [off_diagonal <= 0, cvxpy.sum(T, axis=1) >= 0]  # these T are the sums of the docstring
            total = total - z.T @ T @ z + sum(q.T @ T @ q for q in variables)
    problem = cvxpy.Problem(cvxpy.Minimize(rho), [*constraints, 0.5 * (total + total.T) >> 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            problem.solve(solver=options.solver, **options.arguments(seconds))
        except Exception as error:  # a foreign solver may raise anything
            return math.nan, f"error: {error}"
    if rho.value is None or not math.isfinite(float(rho.value)):
        return math.nan, str(problem.status)
    return math.ldexp(math.sqrt(max(float(rho.value), 0.0)), system.exponent), str(problem.status)


def _states(system: LipSDP) -> tuple[list[tuple[Floats, list[list[Floats]]]], Floats, int]:
    """Per stage z and its groups of q as maps of (x0, q_1, ...); the output; the size of x0."""
    W = system.entry.numpy()
    if W.shape[1] > W.shape[0]:
        W = np.linalg.qr(W.T)[1].T
    n = W.shape[1]
    size = n + sum(stage.increments.variables * stage.width for stage in system.stages)
    state: Floats = np.concatenate([W, np.zeros((len(W), size - n))], axis=1)
    rows: list[tuple[Floats, list[list[Floats]]]] = []
    for stage in system.stages:
        rule, u = stage.increments, stage.width
        parts: list[Floats] = []
        for _ in range(rule.variables):
            parts.append(np.eye(u, size, n))
            n += u
        rows.append(
            (
                state,
                [[q for q, own in zip(parts, rule.group, strict=True) if own == c] for c in range(rule.constraints)],
            )
        )
        E = rule.outputs.numpy()
        outputs = [
            sum((e * part for e, part in zip(row, [state, *parts], strict=True)), np.zeros_like(state)) for row in E
        ]
        state = stage.weight.numpy() @ np.concatenate(outputs)
    return rows, state, min(system.entry.shape)
