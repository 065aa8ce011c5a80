"""The processes in which cells are done: one answers many, and is replaced when it crosses a limit or crashes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from lipbridge.processes import STDERR, STDOUT, Child, Ended, EnforcedBy, Limit, python_module
from lipbridge.study.engine import wire

#: Seconds that a process may take to import what it needs, which is not the verifier's time.
STARTUP_SECONDS = 120.0
#: By which libraries are told how many threads they may have.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
#: Bytes of its own memory above which an idle process is replaced, and bytes that are kept of what one prints.
_TIRED, _PRINTED = 2 * 2**30, 2**24
_POLL = 0.02


class Worker:
    """A process that answers one folder after the other (:mod:`lipbridge.study.engine.worker`).

    It starts when it is first asked, and ends with this process, however that ends. One thread asks; another may
    :meth:`close` it.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._process: Child | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, None if there is none now."""
        process = self._process
        return None if process is None else process.pid

    def ask(self, folder: Path, limits: Mapping[str, float], memory: float) -> Ended:
        """Have a folder answered; a process that crosses a limit is ended, and the next folder gets another.

        Args:
            folder: holds a Request or a Cell.
            limits: seconds of each phase, by the file in the folder that says that it has begun, in their order; the
                first has no file and an empty name.
            memory: bytes of resident memory of the process and all that it starts.

        Returns:
            How it ended: the code is 0, the limit None for one that has answered.

        Raises:
            OSError: if it cannot be started.
        """
        process = self._running(folder, memory)
        if process is None:
            return Ended(-signal.SIGKILL, None, 0.0, 0)
        process.begin(memory)
        process.tell(os.fspath(folder))  # one that has ended tells so by its code
        end = _watched(process, folder, limits)
        if end.code != 0 or end.memory > _TIRED:
            self._end()
        return end

    def close(self) -> None:
        """End it; it answers no more."""
        with self._lock:
            self._closed = True
        self._end()

    def _running(self, folder: Path, memory: float) -> Child | None:
        with self._lock:
            if self._closed:
                return None
            if self._process is None:
                command, environment = python_module("lipbridge.study.engine.worker")
                environment |= dict.fromkeys(THREAD_VARIABLES, str(self.threads)) | {"TMPDIR": str(folder)}
                self._process = Child(command, folder, memory=memory, environment=environment)
            return self._process

    def _end(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()


def _watched(process: Child, folder: Path, limits: Mapping[str, float]) -> Ended:
    phases, at = list(limits), 0
    since, before = time.perf_counter(), process.cpu_seconds
    code: int | None = None
    limit: Limit | None = None
    while code is None and limit is None:
        over = process.look()
        if process.wait(_POLL):
            code = process.code
            if process.enforced_by is EnforcedBy.CGROUP and process.look():
                code, limit = None, Limit.MEMORY
            elif code == 0 and not (folder / wire.DONE).exists():
                code = os.EX_SOFTWARE  # it took its leave without an answer
            break
        now = time.perf_counter()
        if (folder / wire.DONE).exists():
            process.look()
            code = 0
        elif over:
            limit = Limit.MEMORY
        else:
            while at + 1 < len(phases) and (folder / phases[at + 1]).exists():
                at, since = at + 1, now
            limit = Limit.TIME if now - since > limits[phases[at]] else None
        _shorten(folder)
    seconds, cpu = time.perf_counter() - since, process.cpu_seconds - before
    return Ended(code, limit, seconds, process.memory, cpu, process.charged, process.enforced_by)


def _shorten(folder: Path) -> None:
    """What a process prints without end must not fill the disk."""
    for name in (STDOUT, STDERR):
        with contextlib.suppress(OSError):
            if os.stat(folder / name).st_size > _PRINTED:
                os.truncate(folder / name, 0)


__all__ = ["STARTUP_SECONDS", "THREAD_VARIABLES", "Worker"]
