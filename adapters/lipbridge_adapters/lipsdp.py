"""LipSDP through cvxpy: the field's SDP baseline, with every bound proved again from the solver's multipliers.

Source: Fazlyab, Robey, Hassani, Morari, Pappas 2019 (LipSDP-Neuron). The matrix inequality, the constraint of each
activation and the proof are in :mod:`lipbridge.verifiers.lmi`; this file hands the inequality to a solver.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import torch

from lipbridge.bounds import Bound, Problem
from lipbridge.errors import InvalidArgument, LipbridgeError, UnsupportedProblem
from lipbridge.verifiers.lmi import closed_form_bound, closed_form_multipliers, prove_from_multipliers, unsupported
from lipbridge.verifiers.lmi_blocks import Blocks, blocks_of, predicted_size
from lipbridge.verifiers.lmi_local import bound_on_region
from lipbridge.verifiers.lmi_system import LipSDP
from lipbridge.verifiers.protocol import Budget
from lipbridge.vocabulary import Side, Status

CLOSED_FORM = "the bound is that of the closed-form feasible multipliers."
#: Seconds an entry of the program for building it with cvxpy, and for SCS's factorisation, on a busy machine. Neither
#: can be interrupted, so neither is begun when it would not fit. (Quiet: 0.7e-6 and 2e-6.)
BUILD_SECONDS, SETUP_SECONDS = 3e-6, 1e-5


@dataclass(frozen=True)
class Options:
    """What a user may set in ``budget.options``."""

    solver: str = "SCS"
    eps: float = 1e-5
    max_iters: int = 1_000_000

    @staticmethod
    def read(options: Mapping[str, object]) -> Options:
        """Raises :class:`InvalidArgument` for a value outside its domain. Unknown names belong to other verifiers."""
        solver, eps = options.get("solver", Options.solver), options.get("eps", Options.eps)
        iterations = options.get("max_iters", Options.max_iters)
        if not isinstance(solver, str):
            raise InvalidArgument("solver", "be the name of a cvxpy solver", solver)
        if not isinstance(eps, int | float) or not 0 < eps < 1:
            raise InvalidArgument("eps", "be between 0 and 1", eps)
        if not isinstance(iterations, int) or iterations < 1:
            raise InvalidArgument("max_iters", "be a whole number of at least 1", iterations)
        return Options(solver.upper(), float(eps), iterations)


#: Solver options by name: (tolerance, iterations, seconds) -> keyword arguments. Others run with their own defaults.
SOLVER_OPTIONS: Mapping[str, Callable[[float, int, float], dict[str, object]]] = {
    "SCS": lambda eps, n, s: {"eps_abs": eps, "eps_rel": eps, "max_iters": n, "time_limit_secs": s},
    "CLARABEL": lambda eps, n, s: {
        "tol_gap_abs": eps, "tol_gap_rel": eps, "tol_feas": eps, "max_iter": min(n, 2**31), "time_limit": s
    },
    "CVXOPT": lambda eps, n, _: {"abstol": eps, "reltol": eps, "feastol": eps, "max_iters": min(n, 10_000)},
    "SDPA": lambda eps, n, _: {"epsilonStar": eps, "epsilonDash": eps, "maxIteration": min(n, 10_000)},
    "MOSEK": lambda eps, n, s: {
        "mosek_params": {
            "MSK_DPAR_INTPNT_CO_TOL_REL_GAP": eps,
            "MSK_IPAR_INTPNT_MAX_ITERATIONS": min(n, 10_000),
            "MSK_DPAR_OPTIMIZER_MAX_TIME": s,
        }
    },
}  # fmt: skip


def predicted_memory(entries: int, cells: int, solver: str = "SCS") -> int:
    """Bytes that the process takes for ``entries`` nonzeros and blocks of ``cells`` numbers.

    Fitted to the peak resident memory of 12 runs with SCS 3.3 and cvxpy 1.9 (relu, gelu, crelu, abs, sincos; from
    10-50-50-5 to 10-400-400-5 and 784-256-256-10): 310 MB at the start, 228 to 258 bytes an entry, 620 to 720 a cell.
    CLARABEL keeps a dense matrix of the cells' pairs (1.6 GB for one block of 110 rows). Others are taken to be as SCS.
    """
    pairs = 11 * cells * cells if solver == "CLARABEL" else 0
    return 330 * 10**6 + 270 * entries + 750 * cells + pairs


class LipSDPVerifier:
    """The least l_2 bound that diagonal multipliers give, by an SDP solver; proved from the multipliers it returns."""

    name = "lipsdp"
    summary = "Lipschitz constant, global or in balls: semidefinite program (LipSDP-Neuron; joint constraints too)"
    norms = "2"
    proved = True
    requires: tuple[str, ...] = ("cvxpy", "scipy")
    install = 'pip install "lipbridge[sdp]"'

    def supports(self, problem: Problem) -> str | None:
        """Dense chains, l2 to l2, everywhere or on balls of any norm."""
        return unsupported(problem)

    def bound(self, problem: Problem, budget: Budget) -> Bound:
        """A proved upper bound; never a raw objective.

        Options: ``solver`` (of cvxpy, one that takes semidefinite constraints), ``eps`` (its tolerance), ``max_iters``.

        Raises:
            UnsupportedProblem: if :meth:`supports` gives a reason.
            InvalidArgument: for an option outside its domain.
            LipbridgeError: for a solver that is not installed, with those that are.
        """
        start = time.perf_counter()
        reason = self.supports(problem)
        if reason is not None:
            raise UnsupportedProblem(f"`{self.name}` cannot take this problem: {reason}.")
        options = Options.read(budget.options)
        cvxpy: Any = import_module("cvxpy")
        _require_solver(cvxpy, options.solver)

        def solve(system: LipSDP, deadline: float) -> Bound:
            return _bound_system(cvxpy, options, system, deadline, budget.memory)

        bound = bound_on_region(problem, start + budget.seconds, solve)
        return replace(bound, region=problem.region_name, seconds=time.perf_counter() - start)


def _bound_system(cvxpy: Any, options: Options, system: LipSDP, deadline: float, memory: int) -> Bound:
    """The proved bound of one matrix inequality by a time of ``time.perf_counter``; NaN if it would not fit."""
    method = f"LipSDP, {options.solver}"
    if system.constant or not any(stage.increments.variables for stage in system.stages):
        return replace(closed_form_bound(system), method="LipSDP, closed form")
    estimate = predicted_memory(*predicted_size(system), options.solver)
    if estimate > memory:
        detail = f"{options.solver} would take about {_gigabytes(estimate)}; the limit is {_gigabytes(memory)}."
        return Bound(float("nan"), Side.UPPER, False, "2", method, status=Status.MEMORY, detail=detail)
    fallback = closed_form_bound(system)
    for_the_proof = min(5.0 * fallback.seconds, 0.3 * (deadline - time.perf_counter() + fallback.seconds))
    run = _Run(cvxpy, options, deadline - for_the_proof)
    run.solve(system)
    bound = fallback
    if run.multipliers is not None:
        bound = prove_from_multipliers(system, run.multipliers, method)
        bound = bound if bound.value <= fallback.value else fallback
    extra = {"solver": options.solver, "solver_status": run.status, "solver_seconds": run.seconds}
    status = Status.TIMEOUT if run.timed_out else Status.OK if run.multipliers is not None else Status.FAILED
    return replace(bound, status=status, detail=run.detail, extra=extra)


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.2g} GiB"


def _require_solver(cvxpy: Any, solver: str) -> None:
    """Raise if a solver is unknown, not installed, or takes no semidefinite constraint."""
    table: Any = import_module("cvxpy.reductions.solvers.defines").SOLVER_MAP_CONIC
    installed = [str(name) for name in cvxpy.installed_solvers()]
    fit = [name for name in installed if name in table and _takes_psd(table[name])]
    if solver not in fit:
        reason = "takes no semidefinite constraints" if solver in installed else "is not installed or not known"
        raise LipbridgeError(f"Solver {solver!r} {reason}. Installed: {', '.join(fit)}.")


def _takes_psd(solver: Any) -> bool:
    # By name: cvxpy 1.9 split the class PSD in two (PSD, SvecPSD), and a solver lists either.
    return any("PSD" in constraint.__name__ for constraint in solver.SUPPORTED_CONSTRAINTS)


class _Run:
    """One solver run against a deadline. Afterwards ``multipliers`` is None if nothing usable came back."""

    def __init__(self, cvxpy: Any, options: Options, deadline: float) -> None:
        self.cvxpy, self.options, self.deadline = cvxpy, options, deadline
        self.multipliers: dict[str, torch.Tensor] | None = None
        self.status, self.detail, self.timed_out, self.seconds = "not started", "", False, 0.0

    @property
    def left(self) -> float:
        return self.deadline - time.perf_counter()

    def solve(self, system: LipSDP) -> None:
        entries, _ = predicted_size(system)
        if BUILD_SECONDS * entries > self.left:
            self._give_up("the problem alone takes longer to build")
            return
        blocks = blocks_of(system, system.vectors(closed_form_multipliers(system)))
        variable, problem = _problem(self.cvxpy, blocks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cvxpy warns of inaccurate solutions: here they are proved or replaced
            data, chain, inverse = problem.get_problem_data(self.options.solver, solver_opts=self._arguments())
            if self.left <= 0:
                self._give_up("the problem alone took longer to build")
                return
            self._run(problem, data, chain, inverse, SETUP_SECONDS * entries)
        value = variable.value
        if value is None or not np.isfinite(value).all():
            self.detail = f"{self.options.solver} returned no multipliers ({self.status}): {CLOSED_FORM}"
            return
        vectors = [torch.tensor(T) for T in blocks.vectors(np.asarray(value, dtype=float))]
        self.multipliers = system.multipliers(vectors)

    def _run(self, problem: Any, data: Any, chain: Any, inverse: Any, setup: float) -> None:
        limit, arguments = self.left, self._arguments()
        if self.options.solver == "SCS":  # its clock starts after the factorisation; conjugate gradients need none
            indirect = setup > 0.2 * limit
            arguments |= {"use_indirect": indirect, "time_limit_secs": limit if indirect else limit - setup}
        begin = time.perf_counter()
        try:
            raw = chain.solve_via_data(problem, data, warm_start=False, verbose=False, solver_opts=arguments)
            problem.unpack_results(raw, chain, inverse)
            self.status = str(problem.status)
        except Exception as error:  # a foreign solver may raise anything: it is a row, not the end of the study
            self.status = f"error: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        self.seconds = time.perf_counter() - begin
        self.timed_out = self.seconds >= 0.98 * limit
        if self.timed_out:
            self.detail = f"{self.options.solver} stopped at the time limit; its multipliers so far were proved."

    def _arguments(self) -> dict[str, object]:
        known = SOLVER_OPTIONS.get(self.options.solver)
        return known(self.options.eps, self.options.max_iters, self.left) if known else {}

    def _give_up(self, why: str) -> None:
        self.timed_out, self.detail = (
            True,
            f"The time limit was reached before {self.options.solver} began ({why}): {CLOSED_FORM}",
        )


def _problem(cvxpy: Any, blocks: Blocks) -> tuple[Any, Any]:
    """The cvxpy problem: one sparse affine map and one semidefinite constraint a block."""
    sparse: Any = import_module("scipy.sparse")
    variable = cvxpy.Variable(blocks.variables, nonneg=True)
    constraints: list[Any] = []
    for block in blocks.blocks:
        # cvxpy takes X >> 0 to mean X + X' >= 0: the lower triangle, counted twice off the diagonal, is enough.
        values = np.where(block.rows == block.columns, block.values, 2.0 * block.values)
        places = block.columns * block.size + block.rows
        shape = (block.size * block.size, blocks.variables)
        matrix = sparse.coo_array((values, (places, block.variables)), shape=shape).tocsc()
        expression = matrix @ variable + block.constant.ravel()
        constraints.append(cvxpy.reshape(expression, (block.size, block.size), order="F") >> 0)
    return variable, cvxpy.Problem(cvxpy.Minimize(variable[0]), constraints)
