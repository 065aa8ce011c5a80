"""Child processes with a time and a memory limit, ended with all that they started."""

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

from lipbridge.cgroups import new_group
from lipbridge.descendants import VARIABLE, Family, new_token, own_token

#: Where a child's output goes, in its folder.
STDOUT, STDERR = "stdout.txt", "stderr.txt"
_PROC = Path("/proc")


class Limit(StrEnum):
    """Which limit a child was stopped at."""

    TIME = "time"
    MEMORY = "memory"


class EnforcedBy(StrEnum):
    """Who held a child to its limit of memory: the kernel, or this process, which looks now and then."""

    CGROUP = "cgroup"
    POLLING = "polling"


@dataclass(frozen=True)
class Ended:
    """How a child ended: by itself with ``code`` (minus the number of a signal), or stopped at ``limit``.

    Attributes:
        code: the exit code; None if it was stopped.
        limit: the limit that it was stopped at; None if it ended by itself.
        seconds: of its last phase.
        memory: the largest resident memory, in bytes, of it and all that it started that was seen.
        cpu_seconds: of it and all that it started; of what left it, as last seen.
        charged: the most memory, in bytes, that the kernel charged to all of them, files that were read included; None
            where it does not tell.
        enforced_by: who held the limit of memory.
    """

    code: int | None
    limit: Limit | None
    seconds: float
    memory: int
    cpu_seconds: float = 0.0
    charged: int | None = None
    enforced_by: EnforcedBy = EnforcedBy.POLLING


class Child:
    """A process with a limit of memory. At the end of its ``with`` block nothing of it runs, whatever it started.

    What it starts belongs to it also where it makes a session of its own and leaves its parent, as daemons do. Its
    standard input is a pipe that closes when this process ends, see :func:`end_with_parent`; its output goes to files
    in ``folder``. One thread watches it; another may :meth:`end` it.

    Args:
        memory: limit in bytes of it and all that it starts; held by the kernel where this process may make control
            groups, by :meth:`look` elsewhere.
        environment: variables in addition to those of this process.
        own_group: it leads a process group of its own, which is ended as a whole. False for a child of a process that
            may itself be ended with its group.

    Raises:
        OSError: if it cannot be started.

    Attributes:
        code: how it ended by itself; None while it runs.
        memory: the largest resident memory seen, in bytes.
        enforced_by: who holds the limit of memory.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        memory: float,
        environment: Mapping[str, str] | None = None,
        own_group: bool = True,
    ) -> None:
        token, tokens = new_token()
        # Below a process with limits the kernel's are those of that one.
        group = new_group(memory) if own_token() is None else None
        try:
            with open(folder / STDOUT, "wb") as out, open(folder / STDERR, "wb") as err:
                self._process = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=err,
                    env={**os.environ, **(environment or {}), VARIABLE: tokens},
                    start_new_session=own_group,
                )
            if group is not None:
                try:
                    group.enter(self.pid)
                except OSError:
                    group.remove()
                    group = None
        except BaseException:
            if group is not None:
                group.remove()
            raise
        self._limit, self._own_group, self._group = memory, own_group, group
        self._family = Family(self.pid, token)
        self._cpu_seconds, self._charged, self._over, self._lock = 0.0, None, False, threading.Lock()
        self.code: int | None = None
        self.memory = 0
        self.enforced_by = EnforcedBy.POLLING if group is None else EnforcedBy.CGROUP

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def tell(self, line: str) -> None:
        """Write a line to it, see :func:`end_with_parent`; one that has ended does not hear it."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(os.fsencode(line) + b"\n")
            self._process.stdin.flush()

    @property
    def cpu_seconds(self) -> float:
        """Of it and all that it started so far."""
        group = self._group
        return max(self._cpu_seconds, self._family.cpu_seconds, 0.0 if group is None else group.cpu_seconds())

    @property
    def charged(self) -> int | None:
        """See :class:`Ended`."""
        return self._charged if (group := self._group) is None else group.peak()

    def wait(self, seconds: float) -> bool:
        """Whether it ends by itself within so many seconds."""
        deadline, pause = time.perf_counter() + seconds, 0.0005
        while not self._reaped():
            left = deadline - time.perf_counter()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.05)
        return True

    def look(self) -> bool:
        """Whether it takes, or took, more memory than it may; to be asked every few hundredths of a second."""
        self.memory = max(self.memory, self._family.memory())
        return self.memory > self._limit if (group := self._group) is None else group.out_of_memory()

    def begin(self, memory: float) -> None:
        """Another piece of work begins, with a limit of its own: ``memory``, and ``charged`` if it can, start anew."""
        self.memory, self._limit = 0, memory
        if (group := self._group) is not None:
            group.limit(memory)
            group.reset_peak()

    def end(self) -> None:
        """End it and all that it started. A second time does nothing."""
        with self._lock:
            if self._over:
                return
            self._over = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._own_group:
                os.killpg(self.pid, signal.SIGKILL)
            elif self.code is None:
                os.kill(self.pid, signal.SIGKILL)
        if (group := self._group) is not None:
            group.kill()
        while not self._reaped():
            time.sleep(0.001)
        self._family.end()
        self._cpu_seconds, self._charged = self.cpu_seconds, self.charged
        if group is not None:
            self._group = None
            group.remove()
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):  # what was written to it and not read
                self._process.stdin.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _reaped(self) -> bool:
        with self._lock:
            if self.code is not None:
                return True
            try:
                pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it, or children are not waited for at all
                self.code = self._process.wait()
                return True
            if pid == 0:
                return False
            self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
            self._cpu_seconds = max(self._cpu_seconds, usage.ru_utime + usage.ru_stime)
            return True


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
    """Run a command to its end or to a limit, as a :class:`Child`; afterwards nothing of it runs.

    Args:
        seconds: the time limit; or a function that gives the name of the phase that the child is in and the limit of
            that phase, each with a clock of its own.
        memory: see :class:`Child`; as are ``folder``, ``environment`` and ``own_group``.
        poll: seconds between two looks at the child.

    Raises:
        OSError: if it cannot be started.
    """
    phases = seconds if callable(seconds) else lambda: ("", seconds)
    with Child(command, folder, memory=memory, environment=environment, own_group=own_group) as child:
        limit, spent = _watched(child, phases, poll)
    code = child.code if limit is None else None
    return Ended(code, limit, spent, child.memory, child.cpu_seconds, child.charged, child.enforced_by)


def _watched(child: Child, phases: Callable[[], tuple[str, float]], poll: float) -> tuple[Limit | None, float]:
    phase, since = "", time.perf_counter()
    child.look()
    while True:
        if child.wait(poll):
            out_of_memory = child.enforced_by is EnforcedBy.CGROUP and child.look()
            return Limit.MEMORY if out_of_memory else None, time.perf_counter() - since
        now = time.perf_counter()
        current, limit = phases()
        if current != phase:
            phase, since = current, now
        if child.look():
            return Limit.MEMORY, now - since
        if now - since > limit:
            return Limit.TIME, now - since


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
        with contextlib.suppress(Exception):
            Family(os.getpid(), own_token()).end()
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
