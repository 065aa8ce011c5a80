"""A cell of a study: one verifier on one problem, in a process of its own, with a time and a memory limit.

The process gets its problem as files and answers with files (safetensors and JSON, never pickle), so a crash, a leak
or a hang of a foreign verifier is a row and not the end of the study. Each cell has the same number of threads.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lipbridge.disk.temporary import temporary_folder
from lipbridge.errors import LipbridgeError
from lipbridge.files.container import save_tensors
from lipbridge.files.problems import save_problem
from lipbridge.problem.bound import Bound
from lipbridge.problem.problem import Problem
from lipbridge.processes import STDERR, Ended, Limit, last_line, python_module, run_child
from lipbridge.study import wire
from lipbridge.verifiers import Budget
from lipbridge.vocabulary import Side, Status

#: Seconds that a process may take to import what it needs, which is not the verifier's time.
STARTUP_SECONDS = 120.0
#: By which libraries are told how many threads they may have.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True, eq=False)
class Certification:
    """Points whose predictions a verifier is asked to certify too: ``inputs`` (n, *input_shape), ``labels`` (n,)."""

    inputs: Tensor
    labels: Tensor
    radius: float


@dataclass(frozen=True, eq=False)
class Cell:
    """One verifier on one problem within a budget; ``certification`` is asked of verifiers that can certify."""

    network: str
    problem: Problem
    verifier: str
    budget: Budget
    certification: Certification | None = None
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a cell. ``total_seconds`` is the whole process, with interpreter start and imports."""

    bound: Bound
    total_seconds: float


def run_cell(cell: Cell) -> Outcome:
    """Run a cell in a process of its own. It always answers: what went wrong is the Bound's status and detail.

    The time limit counts from the moment when everything is imported; a verifier that minds the limit itself has a
    little longer to hand over its best bound. Peak memory is that of the process.
    """
    start = time.perf_counter()
    try:
        with temporary_folder() as folder:
            _write_request(cell, folder)
            bound = _read_answer(cell, folder, _run(cell, folder))
    except (OSError, LipbridgeError) as error:  # a full disk: the other cells, and their rows, go on
        bound = failed(cell.problem, cell.verifier, Status.FAILED, _no_room(error), time.perf_counter() - start)
    return Outcome(bound, time.perf_counter() - start)


def certify_cell(cell: Cell) -> dict[str, object]:
    """Only the certification of a cell, in a process of its own: the facts that a Bound's ``extra`` would hold.

    It always answers: where there are no facts, ``certification`` says why.
    """
    try:
        with temporary_folder() as folder:
            _write_request(cell, folder, bound=False)
            end = _run(cell, folder)
            if (folder / wire.CERTIFIED).exists():
                return wire.read_facts(folder / wire.CERTIFIED)
            return {"certification": _without_answer(cell, folder, end).detail}
    except (OSError, LipbridgeError) as error:
        return {"certification": _no_room(error)}


def _no_room(error: Exception) -> str:
    return f"{str(error).rstrip('.')}; TMPDIR says where temporary files go"


def failed(problem: Problem, verifier: str, status: Status, detail: str, seconds: float = 0.0) -> Bound:
    """The Bound of a verifier that gave none."""
    side = Side.LOWER if verifier == "witness" else Side.UPPER
    return Bound(
        value=math.nan,
        side=side,
        proved=False,
        question=problem.question,
        method=verifier,
        seconds=seconds,
        status=status,
        detail=detail,
    )


def _write_request(cell: Cell, folder: Path, *, bound: bool = True) -> None:
    save_problem(cell.problem, folder / wire.PROBLEM)
    options = {key: value for key, value in cell.budget.options.items() if not isinstance(value, Tensor)}
    tensors = {f"option.{key}": value for key, value in cell.budget.options.items() if isinstance(value, Tensor)}
    request: dict[str, Any] = {
        "verifier": cell.verifier,
        "seconds": cell.budget.seconds,
        "memory": cell.budget.memory,
        "seed": cell.budget.seed,
        "options": options,
        "threads": cell.threads,
        "bound": bound,
        "radius": None,
    }
    if cell.certification is not None:
        request["radius"] = cell.certification.radius
        tensors |= {"inputs": cell.certification.inputs, "labels": cell.certification.labels}
    save_tensors(folder / wire.REQUEST, tensors, request)


def _run(cell: Cell, folder: Path) -> Ended:
    """The worker's end. Each of its phases (imports, bound, certification) has its own clock."""
    grace = max(2.0, 0.1 * cell.budget.seconds)
    limits = {"": STARTUP_SECONDS, wire.STARTED: cell.budget.seconds + grace, wire.ANSWER: cell.budget.seconds + grace}

    def phase() -> tuple[str, float]:
        current = next((name for name in (wire.ANSWER, wire.STARTED) if (folder / name).exists()), "")
        return current, limits[current]

    command, environment = python_module("lipbridge.study.worker", str(folder))
    environment |= dict.fromkeys(THREAD_VARIABLES, str(cell.threads))
    environment["TMPDIR"] = str(folder)  # what a solver leaves behind when it is ended goes with the folder
    return run_child(command, folder, seconds=phase, memory=cell.budget.memory, environment=environment)


def _read_answer(cell: Cell, folder: Path, end: Ended) -> Bound:
    answer, certified = folder / wire.ANSWER, folder / wire.CERTIFIED
    if not answer.exists():
        return _without_answer(cell, folder, end)
    bound = wire.read_bound(answer, cell.problem)
    extra: Mapping[str, object] = wire.read_facts(certified) if certified.exists() else {}
    if cell.certification is not None and end.limit is not None and not extra:
        extra = {"certification": f"stopped at the {end.limit} limit"}
    return replace(bound, extra={**bound.extra, **extra})


def _without_answer(cell: Cell, folder: Path, end: Ended) -> Bound:
    status, detail = Status.FAILED, ""
    if end.limit is Limit.TIME and not (folder / wire.STARTED).exists():
        detail = f"still importing after {STARTUP_SECONDS:g} s"
    elif end.limit is Limit.TIME:
        status, detail = Status.TIMEOUT, f"stopped at the limit of {cell.budget.seconds:g} s"
    elif end.limit is Limit.MEMORY:
        status, detail = Status.MEMORY, f"stopped at the limit of {cell.budget.memory / 2**20:.0f} MiB"
    elif end.code is not None and end.code < 0:
        name = signal.Signals(-end.code).name if -end.code in {s.value for s in signal.Signals} else str(-end.code)
        detail = f"its process was ended by {name}"
    elif end.code == os.EX_IOERR:
        detail = f"its answer could not be written to {folder}: make room, or say with TMPDIR where there is some"
    else:
        detail = f"its process ended with exit code {end.code} and no answer"
    last = last_line(folder / STDERR)
    if status is Status.FAILED and last:
        detail += f": {last}"
    bound = failed(cell.problem, cell.verifier, status, detail, end.seconds)
    return replace(bound, memory=end.memory or None)
