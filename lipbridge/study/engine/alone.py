"""A request answered in a process of its own, with a time and a memory limit.

The process gets its problem as files and answers with files (safetensors and JSON, never pickle), so a crash, a leak
or a hang of a foreign verifier is a row and not the end of the study.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lipbridge.disk.temporary import temporary_folder
from lipbridge.errors import LipbridgeError
from lipbridge.files.container import save_tensors
from lipbridge.files.problems import save_problem
from lipbridge.problem.bound import Bound
from lipbridge.processes import STDERR, Ended, Limit, last_line, python_module, run_child
from lipbridge.study.engine import wire
from lipbridge.study.requests import Outcome, Request, failed
from lipbridge.vocabulary import Status

#: Seconds that a process may take to import what it needs, which is not the verifier's time.
STARTUP_SECONDS = 120.0
#: By which libraries are told how many threads they may have.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def run_request(request: Request) -> Outcome:
    """Answer a request in a process of its own. It always answers: what went wrong is the Bound's status and detail.

    The time limit counts from the moment when everything is imported; a verifier that minds the limit itself has a
    little longer to hand over its best bound. Peak memory is that of the process.
    """
    start = time.perf_counter()
    try:
        with temporary_folder() as folder:
            _write_request(request, folder)
            bound = _read_answer(request, folder, _run(request, folder))
    except (OSError, LipbridgeError) as error:  # a full disk: whatever else is asked goes on
        bound = failed(request.problem, request.verifier, Status.FAILED, _no_room(error), time.perf_counter() - start)
    return Outcome(bound, time.perf_counter() - start)


def certify_request(request: Request) -> dict[str, object]:
    """Only the certification of a request, in a process of its own: the facts that a Bound's ``extra`` would hold.

    It always answers: where there are no facts, ``certification`` says why.
    """
    try:
        with temporary_folder() as folder:
            _write_request(request, folder, bound=False)
            end = _run(request, folder)
            if (folder / wire.CERTIFIED).exists():
                return wire.read_facts(folder / wire.CERTIFIED)
            return {"certification": _without_answer(request, folder, end).detail}
    except (OSError, LipbridgeError) as error:
        return {"certification": _no_room(error)}


def _no_room(error: Exception) -> str:
    return f"{str(error).rstrip('.')}; TMPDIR says where temporary files go"


def _write_request(request: Request, folder: Path, *, bound: bool = True) -> None:
    save_problem(request.problem, folder / wire.PROBLEM)
    options = {key: value for key, value in request.budget.options.items() if not isinstance(value, Tensor)}
    tensors = {f"option.{key}": value for key, value in request.budget.options.items() if isinstance(value, Tensor)}
    words: dict[str, Any] = {
        "verifier": request.verifier,
        "seconds": request.budget.seconds,
        "memory": request.budget.memory,
        "seed": request.budget.seed,
        "options": options,
        "threads": request.threads,
        "bound": bound,
        "radius": None,
    }
    if request.certification is not None:
        words["radius"] = request.certification.radius
        tensors |= {"inputs": request.certification.inputs, "labels": request.certification.labels}
    save_tensors(folder / wire.REQUEST, tensors, words)


def _run(request: Request, folder: Path) -> Ended:
    """The worker's end. Each of its phases (imports, bound, certification) has its own clock."""
    grace = max(2.0, 0.1 * request.budget.seconds)
    limits = {
        "": STARTUP_SECONDS,
        wire.STARTED: request.budget.seconds + grace,
        wire.ANSWER: request.budget.seconds + grace,
    }

    def phase() -> tuple[str, float]:
        current = next((name for name in (wire.ANSWER, wire.STARTED) if (folder / name).exists()), "")
        return current, limits[current]

    command, environment = python_module("lipbridge.study.engine.worker", str(folder))
    environment |= dict.fromkeys(THREAD_VARIABLES, str(request.threads))
    environment["TMPDIR"] = str(folder)  # what a solver leaves behind when it is ended goes with the folder
    return run_child(command, folder, seconds=phase, memory=request.budget.memory, environment=environment)


def _read_answer(request: Request, folder: Path, end: Ended) -> Bound:
    answer, certified = folder / wire.ANSWER, folder / wire.CERTIFIED
    if not answer.exists():
        return _without_answer(request, folder, end)
    bound = wire.read_bound(answer, request.problem)
    extra: Mapping[str, object] = wire.read_facts(certified) if certified.exists() else {}
    if request.certification is not None and end.limit is not None and not extra:
        extra = {"certification": f"stopped at the {end.limit} limit"}
    return replace(bound, extra={**bound.extra, **extra})


def _without_answer(request: Request, folder: Path, end: Ended) -> Bound:
    status, detail = Status.FAILED, ""
    if end.limit is Limit.TIME and not (folder / wire.STARTED).exists():
        detail = f"still importing after {STARTUP_SECONDS:g} s"
    elif end.limit is Limit.TIME:
        status, detail = Status.TIMEOUT, f"stopped at the limit of {request.budget.seconds:g} s"
    elif end.limit is Limit.MEMORY:
        status, detail = Status.MEMORY, f"stopped at the limit of {request.budget.memory / 2**20:.0f} MiB"
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
    bound = failed(request.problem, request.verifier, status, detail, end.seconds)
    return replace(bound, memory=end.memory or None)
