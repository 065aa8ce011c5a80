"""What solvers of mixed-integer linear programs say: HiGHS, and Gurobi or SCIP where they are installed.

Each runs on one thread, within about so many seconds. Nothing of what they say is proved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from lipbridge.processes import stdout_to_stderr
from lipbridge_adapters.milp.program import TOLERANCE, Answer, Scaled, Vector


class Solving(Protocol):
    """The objective is maximised."""

    def __call__(
        self, program: Scaled, seconds: float, *, gap: float, seed: int = 0, target: float | None = None
    ) -> Answer:
        """The answer of a solver.

        Args:
            program: what it is handed.
            seconds: its time limit.
            gap: relative distance of primal and dual bound at which it stops.
            seed: of its random choices.
            target: the objective at which it may stop; none if not given.
        """
        ...


@dataclass(frozen=True)
class Tool:
    """A solver: its module, the command that installs it, and what calls it."""

    module: str
    install: str
    summary: str
    maximise: Solving


def highs(program: Scaled, seconds: float, *, gap: float, seed: int = 0, target: float | None = None) -> Answer:
    """HiGHS, by highspy."""
    highspy: Any = import_module("highspy")
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.cost), len(program.least)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = program.cost, program.lower, program.upper
    lp.row_lower_, lp.row_upper_ = program.least, program.most
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    matrix = program.matrix
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data
    lp.sense_ = highspy.ObjSense.kMaximize
    kinds = highspy.HighsVarType
    lp.integrality_ = [kinds.kInteger if x else kinds.kContinuous for x in program.whole]

    with stdout_to_stderr():  # its first instance prints a line
        solver = highspy.Highs()
    settings: list[tuple[str, object]] = [
        ("output_flag", False),
        ("threads", 1),
        ("parallel", "off"),
        ("random_seed", seed % 2**31),
        ("time_limit", max(seconds, 1e-3)),
        ("mip_rel_gap", gap),
        ("mip_abs_gap", 1e-9),
        ("mip_feasibility_tolerance", TOLERANCE),
        ("primal_feasibility_tolerance", TOLERANCE),
        ("dual_feasibility_tolerance", TOLERANCE),
    ]
    if target is not None:
        settings.append(("objective_target", (target - program.shift) / program.size))
    for name, chosen in settings:
        solver.setOptionValue(name, chosen)
    solver.passModel(lp)
    solver.run()
    info, status = solver.getInfo(), solver.getModelStatus()
    point = np.array(solver.getSolution().col_value)
    feasible = highspy.SolutionStatus.kSolutionStatusFeasible
    found = len(point) == len(program.cost) and info.primal_solution_status == feasible
    mip = bool(program.whole.any())
    statuses = highspy.HighsModelStatus
    primal = program.objective(info.objective_function_value) if found else -math.inf
    dual = program.objective(info.mip_dual_bound) if mip else primal
    return Answer(
        status=str(solver.modelStatusToString(status)),
        optimal=status == statuses.kOptimal,
        timed_out=status == statuses.kTimeLimit,
        infeasible=status == statuses.kInfeasible,
        dual=dual if math.isfinite(dual) and (mip or status == statuses.kOptimal) else math.inf,
        primal=primal,
        point=point * program.unit if found else None,
        nodes=max(int(info.mip_node_count), 0),
    )


def gurobi(program: Scaled, seconds: float, *, gap: float, seed: int = 0, target: float | None = None) -> Answer:
    """Gurobi, by gurobipy; its free licence takes 2,000 variables and rows."""
    module: Any = import_module("gurobipy")
    with stdout_to_stderr():
        environment = module.Env(empty=True)
        environment.setParam("OutputFlag", 0)
        environment.start()
        model = module.Model(env=environment)
    settings: dict[str, object] = {
        "Threads": 1,
        "Seed": seed % 2_000_000_000,
        "TimeLimit": max(seconds, 1e-3),
        "MIPGap": gap,
        "MIPGapAbs": 1e-9,
        "IntFeasTol": TOLERANCE,
        "FeasibilityTol": TOLERANCE,
        "OptimalityTol": TOLERANCE,
        "DualReductions": 0,
    }
    if target is not None:
        settings["BestObjStop"] = (target - program.shift) / program.size
    for name, chosen in settings.items():
        model.setParam(name, chosen)
    kinds = np.where(program.whole, "I", "C")
    v = model.addMVar(len(program.cost), lb=program.lower, ub=program.upper, vtype=kinds)
    rows = program.matrix.tocsr()
    bounded = np.isfinite(program.least)
    model.addMConstr(rows, v, "<", program.most)
    if bounded.any():
        model.addMConstr(rows[bounded], v, ">", program.least[bounded])
    model.setMObjective(None, program.cost, 0.0, sense=module.GRB.MAXIMIZE)
    model.optimize()
    codes = module.GRB
    point = np.array(v.X) if model.SolCount else None
    optimal = model.Status == codes.OPTIMAL
    dual = program.objective(float(model.ObjBound)) if model.Status != codes.INFEASIBLE else math.inf
    return Answer(
        status=f"status {model.Status} of Gurobi",
        optimal=optimal,
        timed_out=model.Status == codes.TIME_LIMIT,
        infeasible=model.Status == codes.INFEASIBLE,
        dual=dual,
        primal=program.objective(float(model.ObjVal)) if model.SolCount else -math.inf,
        point=None if point is None else point * program.unit,
        nodes=int(model.NodeCount),
    )


def scip(program: Scaled, seconds: float, *, gap: float, seed: int = 0, target: float | None = None) -> Answer:
    """SCIP, by PySCIPOpt."""
    module: Any = import_module("pyscipopt")
    model = module.Model()
    model.hideOutput()
    settings: dict[str, object] = {
        "limits/time": max(seconds, 1e-3),
        "limits/gap": gap,
        "limits/absgap": 1e-9,
        "parallel/maxnthreads": 1,
        "lp/threads": 1,
        "randomization/randomseedshift": seed % 2**31,
        "numerics/feastol": TOLERANCE,
        "numerics/dualfeastol": TOLERANCE,
    }
    if target is not None:
        settings["limits/primal"] = (target - program.shift) / program.size
    for name, chosen in settings.items():
        model.setParam(name, chosen)
    variables = [
        model.addVar(lb=float(low), ub=float(high), vtype="I" if whole else "C", obj=float(cost))
        for low, high, whole, cost in zip(program.lower, program.upper, program.whole, program.cost, strict=True)
    ]
    rows = program.matrix.tocsr()
    for i, (least, most) in enumerate(zip(program.least, program.most, strict=True)):
        part = slice(rows.indptr[i], rows.indptr[i + 1])
        terms = [(float(a), variables[j]) for a, j in zip(rows.data[part], rows.indices[part], strict=True)]
        row = module.quicksum(a * v for a, v in terms)
        model.addCons(row <= float(most))
        if math.isfinite(least):
            model.addCons(row >= float(least))
    model.setMaximize()
    with stdout_to_stderr():
        model.optimize()
    status = str(model.getStatus())
    best = model.getBestSol() if model.getNSols() else None
    point: Vector | None = None if best is None else np.array([model.getSolVal(best, v) for v in variables])
    return Answer(
        status=f"{status}, by SCIP",
        optimal=status == "optimal",
        timed_out=status == "timelimit",
        infeasible=status == "infeasible",
        dual=program.objective(float(model.getDualbound())) if status != "infeasible" else math.inf,
        primal=program.objective(float(model.getObjVal())) if best is not None else -math.inf,
        point=None if point is None else point * program.unit,
        nodes=int(model.getNNodes()),
    )


#: By the names that users type.
TOOLS: Mapping[str, Tool] = {
    "highs": Tool("highspy", 'pip install "lipbridge[milp]"', "exact, as a mixed-integer program, by HiGHS", highs),
    "gurobi": Tool(
        "gurobipy", "pip install gurobipy", "exact, as a mixed-integer program, by Gurobi, with your licence", gurobi
    ),
    "scip": Tool("pyscipopt", "pip install pyscipopt", "exact, as a mixed-integer program, by SCIP", scip),
}

__all__ = ["TOOLS", "Solving", "Tool", "gurobi", "highs", "scip"]
