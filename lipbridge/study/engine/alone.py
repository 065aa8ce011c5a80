"""A request answered in a process of its own, with a time and a memory limit.

The process gets its problem as files and answers with files (safetensors and JSON, never pickle), so a crash, a leak
or a hang of a foreign verifier is a row and not the end of the study.
"""

from __future__ import annotations

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
from lipbridge.processes import Ended
from lipbridge.study.cells import Limits
from lipbridge.study.engine import wire
from lipbridge.study.engine.ends import patience, without_answer
from lipbridge.study.engine.workers import STARTUP_SECONDS, Worker
from lipbridge.study.requests import Outcome, Request, failed
from lipbridge.vocabulary import Status


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
    seconds = patience(request.budget.seconds)
    worker = Worker(request.threads)
    try:
        limits = {"": STARTUP_SECONDS, wire.STARTED: seconds, wire.ANSWER: seconds}
        return worker.ask(folder, limits, request.budget.memory)
    finally:
        worker.close()


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
    limits = Limits(request.budget.seconds, request.budget.memory)
    status, detail = without_answer(folder, end, limits)
    bound = failed(request.problem, request.verifier, status, detail, end.seconds)
    return replace(bound, memory=end.memory or None)
