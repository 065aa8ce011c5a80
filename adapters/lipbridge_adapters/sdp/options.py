"""What each solver calls what a user has set, and what memory it takes. The solver's process imports no torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lipbridge.errors import LipbridgeError


@dataclass(frozen=True)
class Options:
    """What a user has set."""

    solver: str
    eps: float
    max_iters: int

    def arguments(self, seconds: float) -> dict[str, object]:
        """The solver's own keyword arguments, with a time limit where it has one."""
        known = SOLVER_OPTIONS.get(self.solver)
        return known(self.eps, self.max_iters, seconds) if known else {}

    @property
    def minds_time(self) -> bool:
        """Whether the solver stops by itself at a time limit; others run in a child process that is ended."""
        return self.solver in ("SCS", "CLARABEL", "MOSEK", "QICS")


def too_large(solver: str, needed: float, memory: float) -> str:
    """Why a solver that needs so many bytes is not begun under a limit; empty if it fits."""
    if needed <= memory:
        return ""
    return f"{solver} would take about {needed / 2**30:.2g} GiB; the limit is {memory / 2**30:.2g} GiB"


#: Solver options by name: (tolerance, iterations, seconds) -> keyword arguments. Others run with their own defaults.
SOLVER_OPTIONS: Mapping[str, Callable[[float, int, float], dict[str, object]]] = {
    "SCS": lambda eps, n, s: {"eps_abs": eps, "eps_rel": eps, "max_iters": n, "time_limit_secs": s},
    "CLARABEL": lambda eps, n, s: {
        "tol_gap_abs": eps, "tol_gap_rel": eps, "tol_feas": eps, "max_iter": min(n, 2**31), "time_limit": s
    },
    "CVXOPT": lambda eps, n, _: {"abstol": eps, "reltol": eps, "feastol": eps, "max_iters": min(n, 10_000)},
    "SDPA": lambda eps, n, _: {"epsilonStar": eps, "epsilonDash": eps, "maxIteration": min(n, 10_000)},
    "QICS": lambda eps, n, s: {
        "tol_gap": eps, "tol_feas": eps, "max_iter": min(n, 10_000), "max_time": s, "verbose": 0
    },
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
    CLARABEL keeps a dense matrix of the cells' pairs (1.6 GB for one block of 110 rows). What the others take beside
    this is known when the program is there: :func:`solver_memory`.
    """
    pairs = 11 * cells * cells if solver == "CLARABEL" else 0
    return 330 * 10**6 + 270 * entries + 750 * cells + pairs


def solver_memory(solver: str, cells: int, variables: int) -> int:
    """Bytes that a solver takes for itself, above :func:`predicted_memory`; of CVXOPT and SDPA all of their process.

    CVXOPT keeps the program as a dense matrix, cells by variables, and QICS a part of it; SDPA keeps the Schur
    complement, variables squared. Factors are such that no measured peak (resident memory, 20 ms apart) is above:

    ========== ============== ======== ========== =========
    solver     network        cells    variables  peak
    ========== ============== ======== ========== =========
    CVXOPT     10-100-100-5   44,100   201        231 MB
    CVXOPT     10-200-200-5   168,100  401        740 MB
    CVXOPT     10-4x50-5, c.  33,600   4,026      1,388 MB
    SDPA       10-100-100-5   44,100   201        164 MB
    SDPA       10-200-200-5   168,100  401        205 MB
    SDPA       10-4x50-5, c.  33,600   4,026      364 MB
    QICS       10-100-100-5   44,100   201        130 MB
    QICS       10-200-200-5   168,100  401        184 MB
    QICS       10-4x50-5, c.  33,600   4,026      565 MB
    ========== ============== ======== ========== =========

    ("c.": in chordal form; 10-200-200-5 was stopped after 50 s.) MOSEK was not measured, for want of a licence, and
    counts as the largest of them.
    """
    dense, schur = 8.0 * cells * variables, 8.0 * variables**2
    needs = {
        "CVXOPT": 160e6 + 1.2 * dense + 1.5 * schur,
        "SDPA": 165e6 + 320.0 * cells + 2.0 * schur,
        "QICS": 120e6 + 0.6 * dense,
    }
    if solver in ("SCS", "CLARABEL"):
        return 0
    return int(needs.get(solver, max(needs.values())))


def require_solver(cvxpy: Any, solver: str) -> None:
    """Raise if a solver is unknown, not installed, or takes no semidefinite constraint."""
    table: Any = import_module("cvxpy.reductions.solvers.defines").SOLVER_MAP_CONIC
    installed = [str(name) for name in cvxpy.installed_solvers()]
    fit = [name for name in installed if name in table and _takes_psd(table[name])]
    if find_spec("qics") is not None:
        fit.append("QICS")  # by its own interface
    if solver not in fit:
        reason = "takes no semidefinite constraints" if solver in installed else "is not installed or not known"
        raise LipbridgeError(f"Solver {solver!r} {reason}. Installed: {', '.join(fit)}.")


def _takes_psd(solver: Any) -> bool:
    # By name: cvxpy 1.9 split the class PSD in two (PSD, SvecPSD), and a solver lists either.
    return any("PSD" in constraint.__name__ for constraint in solver.SUPPORTED_CONSTRAINTS)
