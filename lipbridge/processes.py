"""Child processes with a time and a memory limit, ended with all that they started; and the memory of processes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

#: Where a child's output goes, in its folder.
STDOUT, STDERR = "stdout.txt", "stderr.txt"
_PROC = Path("/proc")


class Limit(StrEnum):
    """Which limit a child was stopped at."""

    TIME = "time"
    MEMORY = "memory"


@dataclass(frozen=True)
class Ended:
    """How a child ended: by itself with ``code`` (minus the number of a signal), or stopped at ``limit``.

    Attributes:
        code: the exit code; None if it was stopped.
        limit: the limit that it was stopped at; None if it ended by itself.
        seconds: of its last phase.
        memory: the largest resident memory, in bytes, of it and its children that was seen.
    """

    code: int | None
    limit: Limit | None
    seconds: float
    memory: int


def run_child(
    command: Sequence[str],
    folder: Path,
    *,
    seconds: float | Callable[[], tuple[str, float]],
    memory: float,
    environment: Mapping[str, str] | None = None,
    own_group: bool = True,
    poll: float = 0.05,
) -> Ended:
    """Run a command to its end or to a limit. Its output goes to files in ``folder``; afterwards nothing of it runs.

    Its standard input is a pipe that closes when this process ends, see :func:`end_with_parent`.

    Args:
        seconds: the time limit; or a function that gives the name of the phase that the child is in and the limit of
            that phase, each with a clock of its own.
        memory: limit in bytes of the resident memory of the child and its children.
        environment: variables in addition to those of this process.
        own_group: the child leads a process group of its own, which is ended as a whole. False for a child that
            starts none, of a process that may itself be ended with its group.
        poll: seconds between two looks at the child.

    Raises:
        OSError: if it cannot be started.
    """
    phases = seconds if callable(seconds) else lambda: ("", seconds)
    with open(folder / STDOUT, "wb") as out, open(folder / STDERR, "wb") as err:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            env={**os.environ, **(environment or {})},
            start_new_session=own_group,
        )
    try:
        return _watched(process, phases, memory, poll)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if own_group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _watched(
    process: subprocess.Popen[bytes], phases: Callable[[], tuple[str, float]], memory: float, poll: float
) -> Ended:
    phase, since, peak = "", time.perf_counter(), 0
    used = FamilyMemory(process.pid)
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(poll)
            return Ended(code, None, time.perf_counter() - since, peak)
        now = time.perf_counter()
        current, limit = phases()
        if current != phase:
            phase, since = current, now
        peak = max(peak, used.now())
        if peak > memory:
            return Ended(None, Limit.MEMORY, now - since, peak)
        if now - since > limit:
            return Ended(None, Limit.TIME, now - since, peak)


def python_module(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command of a module in this Python, and the variable by which it imports from the same places."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return [sys.executable, "-P", "-m", module, *arguments], {"PYTHONPATH": path}


def end_with_parent(told: Callable[[str], None] | None = None) -> None:
    """In a child of :func:`run_child`: end, with all that it started, when the process that started it ends.

    Args:
        told: called, in a thread of its own, with each line that the parent writes to the pipe meanwhile.
    """
    pipe = os.fdopen(os.dup(0), encoding="utf-8", errors="surrogateescape")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # a solver that reads standard input must not take it for its own

    def wait() -> None:
        with contextlib.suppress(OSError):
            for line in pipe:
                if told is not None:
                    told(line.removesuffix("\n"))
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def last_line(path: Path) -> str:
    """The last line with text of a log, at most 300 characters; for a traceback it is the error itself."""
    with open(path, "rb") as log:
        log.seek(max(0, path.stat().st_size - 4096))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return "".join(c if c.isprintable() else " " for c in lines[-1])[:300] if lines else ""


class FamilyMemory:
    """The resident memory of a process and all its descendants.

    To find these all processes of the machine are read, which on a node with thousands takes a while: it is done so
    rarely that it takes a twentieth of the time at most.
    """

    def __init__(self, pid: int) -> None:
        import psutil  # here, since the command line starts without it

        self._gone = psutil.Error
        self._family: list[psutil.Process] = []
        self._search_at = 0.0
        with contextlib.suppress(self._gone):
            self._family = [psutil.Process(pid)]

    def now(self) -> int:
        """Bytes; 0 if the process has ended."""
        start = time.perf_counter()
        if self._family and start >= self._search_at:
            try:
                self._family[1:] = self._family[0].children(recursive=True)
            except self._gone:
                return 0
            end = time.perf_counter()
            self._search_at = end + 19.0 * (end - start)
        total = 0
        for member in self._family:
            with contextlib.suppress(self._gone):  # it has ended meanwhile
                total += member.memory_info().rss
        return total


def forget_peak() -> None:
    """The peak of :func:`own_peak_bytes` begins anew, where the system can do that."""
    with contextlib.suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text("5")


def own_peak_bytes() -> int:
    """The peak resident memory of this process so far, or since :func:`forget_peak`."""
    try:
        for line in (_PROC / "self" / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Elsewhere getrusage (psutil knows no peak); on Linux it would include the peak of the parent up to the fork.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def stdout_to_stderr() -> Generator[None]:
    """While work is done, what foreign code prints goes to stderr: stdout is for results alone."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # closed by the caller
        yield
        return
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
