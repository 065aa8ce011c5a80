"""Hands blocks of a matrix inequality to a solver of cvxpy, in this process or in a child that can be ended.

SCS, CLARABEL, QICS and MOSEK stop by themselves at a time limit, with what they have. CVXOPT and SDPA know no limit:
they run in a child process, which is killed at the deadline or beyond the memory limit, and then have nothing.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lipbridge.errors import first_line
from lipbridge.processes import Limit, end_with_parent, python_module, run_child
from lipbridge_adapters.sdp.options import Options, solver_memory, too_large
from lipbridge_adapters.sdp.qics import solve_qics

if TYPE_CHECKING:  # the child imports no torch
    from lipbridge.lipsdp.blocks import Blocks, Floats

#: Seconds an entry of the program for building it with cvxpy, and for SCS's factorisation, on a busy machine. Neither
#: can be interrupted, so neither is begun when it would not fit. (Quiet: 0.7e-6 and 2e-6.)
BUILD_SECONDS, SETUP_SECONDS = 3e-6, 1e-5
#: The status of a program that was not begun because its solver would take too much memory.
TOO_LARGE = "not started: too large"
#: Between two looks at a child.
_POLL_SECONDS = 0.02
_FIELDS = ("rows", "columns", "variables", "values", "constant")


@dataclass(frozen=True)
class Answer:
    """What a solver gave: its point, None if none; its status; ``detail`` where it was stopped or did not begin."""

    point: Floats | None
    status: str
    seconds: float
    timed_out: bool = False
    detail: str = ""


def solve(blocks: Blocks, options: Options, deadline: float, memory: float) -> Answer:
    """A solver's answer by a time of ``time.perf_counter``. It never raises for what the solver does."""
    entries = sum(len(block.values) for block in blocks.blocks)
    needed = solver_memory(options.solver, sum(block.size**2 for block in blocks.blocks), blocks.variables)
    why = too_large(options.solver, needed, memory)
    if why:
        return Answer(None, TOO_LARGE, 0.0, detail=why)
    if BUILD_SECONDS * entries > deadline - time.perf_counter():
        return _not_begun(options, "the problem alone takes longer to build")
    if options.minds_time:
        return solve_here(blocks, options, deadline)
    return _solve_in_child(blocks, options, deadline, memory)


def solve_here(blocks: Blocks, options: Options, deadline: float) -> Answer:
    """The same in this process, where only the solver's own time limit holds."""
    if options.solver == "QICS":
        return _solve_by_qics(blocks, options, deadline)
    cvxpy: Any = import_module("cvxpy")
    variable, problem = _problem(cvxpy, blocks, halves=options.solver in ("SCS", "CLARABEL"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy warns of inaccurate solutions: here they are proved or replaced
        left = deadline - time.perf_counter()
        data, chain, inverse = problem.get_problem_data(options.solver, solver_opts=options.arguments(left))
        limit = deadline - time.perf_counter()
        if limit <= 0:
            return _not_begun(options, "the problem alone took longer to build")
        arguments, given = options.arguments(limit), limit
        if options.solver == "SCS":  # its clock starts after the factorisation; conjugate gradients need none
            setup = SETUP_SECONDS * sum(len(block.values) for block in blocks.blocks)
            indirect = setup > 0.2 * limit
            given = limit if indirect else limit - setup
            arguments |= {"use_indirect": indirect, "time_limit_secs": given}
        begin = time.perf_counter()
        try:
            raw = chain.solve_via_data(problem, data, warm_start=False, verbose=False, solver_opts=arguments)
            problem.unpack_results(raw, chain, inverse)
            status = str(problem.status)
        except Exception as error:  # a foreign solver may raise anything: it is a row, not the end of the study
            status = f"error: {first_line(error)}"
        seconds = time.perf_counter() - begin
    value = variable.value
    point = None if value is None or not np.isfinite(value).all() else np.asarray(value, dtype=np.float64)
    timed_out = seconds >= 0.98 * limit or (status != "optimal" and seconds >= 0.98 * given)
    detail = f"{options.solver} stopped at the time limit; its multipliers so far were proved." if timed_out else ""
    return Answer(point, status, seconds, timed_out, detail)


def _solve_by_qics(blocks: Blocks, options: Options, deadline: float) -> Answer:
    begin = time.perf_counter()
    limit = deadline - begin
    point: Floats | None = None
    try:
        point, status = solve_qics(blocks, options, limit)
    except Exception as error:  # as above
        status = f"error: {first_line(error)}"
    seconds = time.perf_counter() - begin
    timed_out = seconds >= 0.98 * limit
    detail = "QICS stopped at the time limit; its multipliers so far were proved." if timed_out else ""
    return Answer(point, status, seconds, timed_out, detail)


def _solve_in_child(blocks: Blocks, options: Options, deadline: float, memory: float) -> Answer:
    from lipbridge.disk.temporary import temporary_folder  # here, since the child imports no torch

    start = time.perf_counter()
    with temporary_folder() as folder:
        _save(blocks, options, folder / "blocks.npz")
        command, environment = python_module("lipbridge_adapters.sdp.solve", str(folder))
        left = deadline - time.perf_counter()
        # It starts nothing, and ends with the group of a study's cell.
        end = run_child(
            command, folder, seconds=left, memory=memory, environment=environment, own_group=False, poll=_POLL_SECONDS
        )
        seconds = time.perf_counter() - start
        if end.limit is not None:
            detail = f"{options.solver} was ended at the {end.limit} limit and had no multipliers yet"
            return Answer(None, f"ended at the {end.limit} limit", seconds, end.limit is Limit.TIME, detail)
        if not (folder / "answer.npz").exists():
            return Answer(None, f"error: its process ended with exit code {end.code}", seconds)
        with np.load(folder / "answer.npz") as answer:
            point = np.asarray(answer["point"], dtype=np.float64)
            return Answer(point if point.size else None, str(answer["status"]), float(answer["seconds"]))


def _save(blocks: Blocks, options: Options, path: Path) -> None:
    """Plain arrays, nothing that could execute."""
    arrays: dict[str, Any] = {"multipliers": blocks.multipliers, "variables": blocks.variables}
    arrays |= {"count": len(blocks.blocks)}
    arrays |= {"solver": options.solver, "eps": options.eps, "max_iters": options.max_iters}
    for index, block in enumerate(blocks.blocks):
        arrays |= {f"{field}{index}": getattr(block, field) for field in _FIELDS}
    np.savez(path, **arrays)


def _child(folder: Path) -> None:
    """The child: solves ``blocks.npz`` and leaves ``answer.npz``."""
    with np.load(folder / "blocks.npz") as saved:
        options = Options(str(saved["solver"]), float(saved["eps"]), int(saved["max_iters"]))
        parts = [{field: saved[f"{field}{index}"] for field in _FIELDS} for index in range(int(saved["count"]))]
        multipliers, variables = int(saved["multipliers"]), int(saved["variables"])
    found = [SimpleNamespace(size=len(part["constant"]), **part) for part in parts]
    blocks = SimpleNamespace(blocks=found, multipliers=multipliers, variables=variables)
    answer = solve_here(cast("Blocks", blocks), options, time.perf_counter() + 1e9)
    point = np.empty(0) if answer.point is None else answer.point
    np.savez(folder / "part.npz", point=point, status=answer.status, seconds=answer.seconds)
    os.replace(folder / "part.npz", folder / "answer.npz")


def _not_begun(options: Options, why: str) -> Answer:
    detail = f"The time limit was reached before {options.solver} began ({why})"
    return Answer(None, "not started", 0.0, True, detail)


def _problem(cvxpy: Any, blocks: Blocks, *, halves: bool) -> tuple[Any, Any]:
    """The cvxpy problem: one sparse affine map and one semidefinite constraint a block.

    For SCS and CLARABEL cvxpy takes X >> 0 to mean X + X' >= 0: the lower triangle, counted twice off the diagonal, is
    enough and takes half the memory. For the others it reads one triangle only, so they get ``halves=False``, all of X.
    """
    from scipy import sparse

    variable = cvxpy.Variable(blocks.variables)
    constraints: list[Any] = [variable[: 1 + blocks.multipliers] >= 0]
    for block in blocks.blocks:
        rows, columns, owners, values = block.rows, block.columns, block.variables, block.values
        off = rows != columns
        if halves:
            values = np.where(off, 2.0 * values, values)
        else:
            rows, columns = np.concatenate([rows, columns[off]]), np.concatenate([columns, rows[off]])
            owners, values = np.concatenate([owners, owners[off]]), np.concatenate([values, values[off]])
        shape = (block.size * block.size, blocks.variables)
        matrix = sparse.coo_array((values, (columns * block.size + rows, owners)), shape=shape).tocsc()
        expression = matrix @ variable + block.constant.ravel()
        constraints.append(cvxpy.reshape(expression, (block.size, block.size), order="F") >> 0)
    return variable, cvxpy.Problem(cvxpy.Minimize(variable[0]), constraints)


if __name__ == "__main__":
    end_with_parent()
    _child(Path(sys.argv[1]))
