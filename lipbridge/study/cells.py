"""A cell of a study: one verifier on one problem, in a process of its own, with a time and a memory limit.

The process gets its problem as files and answers with files (safetensors and JSON, never pickle), so a crash, a leak
or a hang of a foreign verifier is a row and not the end of the study. Each cell has the same number of threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
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
from lipbridge.processes import resident_bytes
from lipbridge.study import wire
from lipbridge.verifiers import Budget
from lipbridge.vocabulary import Side, Status

#: Seconds that a process may take to import what it needs, which is not the verifier's time.
STARTUP_SECONDS = 120.0
#: Between two looks at a process: its memory can grow by about a tenth of a gigabyte meanwhile.
_POLL_SECONDS = 0.05
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


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
            with _process(cell, folder) as process:
                end = _watch(process, folder, cell.budget)
            bound = _read_answer(cell, folder, end)
    except (OSError, LipbridgeError) as error:  # a full disk: the other cells, and their rows, go on
        detail = f"{str(error).rstrip('.')}; TMPDIR says where temporary files go"
        bound = failed(cell.problem, cell.verifier, Status.FAILED, detail, time.perf_counter() - start)
    return Outcome(bound, time.perf_counter() - start)


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


def _write_request(cell: Cell, folder: Path) -> None:
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
        "radius": None,
    }
    if cell.certification is not None:
        request["radius"] = cell.certification.radius
        tensors |= {"inputs": cell.certification.inputs, "labels": cell.certification.labels}
    save_tensors(folder / wire.REQUEST, tensors, request)


@contextlib.contextmanager
def _process(cell: Cell, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """The worker, in a session of its own so that solvers it starts end with it, and surely ended on the way out."""
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(cell.threads))}
    # The same import path as here: the same lipbridge, and the same third-party verifiers.
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    # What a solver leaves behind when it is ended goes with the folder.
    environment["TMPDIR"] = str(folder)
    command = [sys.executable, "-P", "-m", "lipbridge.study.worker", str(folder)]
    with open(folder / wire.STDOUT, "wb") as out, open(folder / wire.STDERR, "wb") as err:
        # The worker ends when the other end of its standard input closes, so it never outlives this process.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


@dataclass(frozen=True)
class _End:
    """How a process ended: by itself with ``code``, or stopped because of ``status``."""

    code: int | None
    status: Status | None
    seconds: float
    memory: int


def _watch(process: subprocess.Popen[bytes], folder: Path, budget: Budget) -> _End:
    """Wait for the process, and stop it at a limit. Each phase (imports, bound, certification) has its own clock."""
    grace = max(2.0, 0.1 * budget.seconds)
    limits = {"": STARTUP_SECONDS, wire.STARTED: budget.seconds + grace, wire.ANSWER: budget.seconds + grace}
    phase, since, peak = "", time.perf_counter(), 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(_POLL_SECONDS)
            return _End(code, None, time.perf_counter() - since, peak)
        now = time.perf_counter()
        current = next((name for name in (wire.ANSWER, wire.STARTED) if (folder / name).exists()), "")
        if current != phase:
            phase, since = current, now
        peak = max(peak, resident_bytes(process.pid))
        if peak > budget.memory:
            return _End(None, Status.MEMORY, now - since, peak)
        if now - since > limits[phase]:
            return _End(None, Status.TIMEOUT, now - since, peak)


def _read_answer(cell: Cell, folder: Path, end: _End) -> Bound:
    answer, certified = folder / wire.ANSWER, folder / wire.CERTIFIED
    if not answer.exists():
        return _without_answer(cell, folder, end)
    bound = wire.read_bound(answer, cell.problem)
    extra: Mapping[str, object] = wire.read_facts(certified) if certified.exists() else {}
    if cell.certification is not None and end.status is not None and not extra:
        extra = {"certification": f"stopped at the {_LIMIT[end.status]} limit"}
    return replace(bound, extra={**bound.extra, **extra})


_LIMIT = {Status.TIMEOUT: "time", Status.MEMORY: "memory"}


def _without_answer(cell: Cell, folder: Path, end: _End) -> Bound:
    status, detail = Status.FAILED, ""
    if end.status is Status.TIMEOUT and not (folder / wire.STARTED).exists():
        detail = f"still importing after {STARTUP_SECONDS:g} s"
    elif end.status is Status.TIMEOUT:
        status, detail = end.status, f"stopped at the limit of {cell.budget.seconds:g} s"
    elif end.status is Status.MEMORY:
        status, detail = end.status, f"stopped at the limit of {cell.budget.memory / 2**20:.0f} MiB"
    elif end.code is not None and end.code < 0:
        name = signal.Signals(-end.code).name if -end.code in {s.value for s in signal.Signals} else str(-end.code)
        detail = f"its process was ended by {name}"
    elif end.code == os.EX_IOERR:
        detail = f"its answer could not be written to {folder}: make room, or say with TMPDIR where there is some"
    else:
        detail = f"its process ended with exit code {end.code} and no answer"
    last = _last_line(folder / wire.STDERR)
    if status is Status.FAILED and last:
        detail += f": {last}"
    bound = failed(cell.problem, cell.verifier, status, detail, end.seconds)
    return replace(bound, memory=end.memory or None)


def _last_line(path: Path) -> str:
    """The last line with text of a log, which for a traceback is the error itself."""
    with open(path, "rb") as log:
        log.seek(max(0, path.stat().st_size - 4096))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:300] if lines else ""
