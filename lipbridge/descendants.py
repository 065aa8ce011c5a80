"""A process and all that came of it, also what left it: daemons of their own session that nobody's child any more.

Each process that is started with limits has a random token in its environment, which what it starts inherits. A process
that leaves its group, its session and its parent still has it; one that also starts anew with an empty environment is
known if it was seen before it left, or if the kernel keeps a control group (:mod:`lipbridge.cgroups`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

#: The variable of the tokens, the oldest first.
VARIABLE = "LIPBRIDGE_CHILD"
_PROC = Path("/proc")
#: Seconds after which what does not end is given up: a process may be stuck in the kernel.
_PATIENCE = 5.0


def new_token() -> tuple[str, str]:
    """A token, and the value of :data:`VARIABLE` for a child of this process that carries it."""
    token = secrets.token_hex(16)
    inherited = os.environ.get(VARIABLE, "")
    return token, f"{inherited}:{token}" if inherited else token


def own_token() -> str | None:
    """The token that this process was started with; None if it was not started with limits."""
    return os.environ.get(VARIABLE, "").rpartition(":")[2] or None


class Family:
    """A process, its descendants, and all that carry its token: their memory, their time, their end.

    To find them all processes of the machine are read, which on a node with thousands takes a while: it is done so
    rarely that it takes a twentieth of the time at most.

    Attributes:
        cpu_seconds: of all of them so far, as last seen.
    """

    def __init__(self, pid: int, token: str | None = None) -> None:
        import psutil  # here, since the command line starts without it

        self._gone = psutil.Error
        self._zombie = psutil.STATUS_ZOMBIE
        self._token = token
        self._members: dict[int, psutil.Process] = {}
        self._seconds: dict[psutil.Process, float] = {}
        self._search_at = 0.0
        self.cpu_seconds = 0.0
        with contextlib.suppress(self._gone):
            self._members[pid] = psutil.Process(pid)

    def memory(self) -> int:
        """Their resident memory, in bytes; 0 if all have ended."""
        start = time.perf_counter()
        if start >= self._search_at:
            self._search()
            end = time.perf_counter()
            self._search_at = end + 19.0 * (end - start)
        total, with_children = 0, 0.0
        for pid, member in list(self._members.items()):
            try:
                total += member.memory_info().rss
                times = member.cpu_times()
            except self._gone:  # it has ended meanwhile
                del self._members[pid]
                continue
            self._seconds[member] = own = times.user + times.system
            with_children += own + times.children_user + times.children_system
        # What was waited for counts with who waited; what left and ended counts as it was last seen.
        self.cpu_seconds = max(self.cpu_seconds, with_children, sum(self._seconds.values()))
        return total

    def end(self) -> None:
        """End them all, again and again until none is left.

        They are stopped before they are killed, the youngest first, so that none starts another meanwhile.
        """
        deadline = time.monotonic() + _PATIENCE
        examined: set[int] = set()
        stopped: set[psutil.Process] = set()
        while time.monotonic() < deadline:
            others = self._search(examined)
            alive = {member for member in self._members.values() if self._alive(member)}
            if not alive and not others:
                return
            if alive <= stopped:
                for member in alive:
                    with contextlib.suppress(self._gone):
                        member.kill()
                time.sleep(0.002)
            for member in alive - stopped:
                self._stop(member)
            stopped |= alive

    def _search(self, examined: set[int] | None = None) -> bool:
        """Find members; with ``examined``, stop them at once, and say whether there was a process beside those."""
        import psutil

        below: set[int] = set()
        for pid, member in list(self._members.items()):
            if pid in below:
                continue
            with contextlib.suppress(self._gone):
                children = {child.pid: child for child in member.children(recursive=True)}
                self._members |= children
                below |= children.keys()
        if self._token is None:
            return False
        mark, others = self._token.encode(), False
        for pid in reversed(psutil.pids()):
            if pid in self._members or pid == os.getpid() or (examined is not None and pid in examined):
                continue
            others = True
            if mark in _environment(pid):
                with contextlib.suppress(self._gone):
                    self._members[pid] = psutil.Process(pid)
                    if examined is not None:
                        self._stop(self._members[pid])
            if examined is not None:
                examined.add(pid)
        return others

    def _stop(self, member: psutil.Process) -> None:
        with contextlib.suppress(self._gone):
            if member.pid != os.getpid():
                member.suspend()

    def _alive(self, member: psutil.Process) -> bool:
        try:
            return member.pid != os.getpid() and member.is_running() and member.status() != self._zombie
        except self._gone:
            return False


def _environment(pid: int) -> bytes:
    """The value of :data:`VARIABLE` of a process as it began; empty if that cannot be read, as another user's."""
    import psutil

    try:
        if sys.platform != "linux":
            return psutil.Process(pid).environ().get(VARIABLE, "").encode()
        entries = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except (OSError, psutil.Error):
        return b""
    name = VARIABLE.encode() + b"="
    return next((entry.removeprefix(name) for entry in entries if entry.startswith(name)), b"")
