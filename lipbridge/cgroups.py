"""Control groups of Linux (version 2): a limit of memory that the kernel holds for a process and all that it starts.

Groups are made below the group of this process, where that was handed over to it ("delegated"): by a service manager
that says so, or by being root of a container. A group with processes cannot have groups below it whose memory is
limited, so this process moves into one of its own there; it does so only if nobody else is in its group.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import math
import os
import re
import threading
import time
from pathlib import Path

_PROC = Path("/proc")
#: Is there where systemd manages the groups: one that it did not hand over is its own.
_SYSTEMD = Path("/run/systemd/system")
#: Seconds that the kernel may take to end what is in a group.
_PATIENCE = 5.0
_NAME = re.compile(r"lipbridge-(\d+)-(\d+)-(self|\d+)")


class Group:
    """A group of its own for a process and all that it starts. Nothing here raises but :meth:`enter`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._peak: int | None = None  # a descriptor: what was reset is known to it alone

    def enter(self, pid: int) -> None:
        """Move a process here, and so all that it will start.

        Raises:
            OSError: if it has ended, or may not be moved.
        """
        (self._folder / "cgroup.procs").write_text(f"{pid}\n")

    def limit(self, memory: float) -> None:
        """So many bytes from now on."""
        with contextlib.suppress(OSError):
            (self._folder / "memory.max").write_text(_bytes(memory))

    def out_of_memory(self) -> bool:
        """Whether the kernel has ended a process here since it found no room below the limit."""
        return _counts(self._folder / "memory.events").get("oom_kill", 0) > 0

    def cpu_seconds(self) -> float:
        """Of all that ever was here."""
        return _counts(self._folder / "cpu.stat").get("usage_usec", 0) / 1e6

    def peak(self) -> int | None:
        """The most memory that was ever charged, in bytes, files that were read included; None before Linux 5.19."""
        with contextlib.suppress(OSError, ValueError):
            if self._peak is not None:
                return int(os.pread(self._peak, 64, 0))
            return int((self._folder / "memory.peak").read_text())
        return None

    def reset_peak(self) -> bool:
        """Count the peak from now on, where the kernel can (Linux 6.12)."""
        try:
            if self._peak is None:
                self._peak = os.open(self._folder / "memory.peak", os.O_RDWR)
            os.write(self._peak, b"reset\n")
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End all that is here, and wait until nothing is."""
        deadline = time.monotonic() + _PATIENCE
        with contextlib.suppress(OSError):  # before Linux 5.14 there is none
            (self._folder / "cgroup.kill").write_text("1\n")
        while (pids := _processes(self._folder)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, 9)
            time.sleep(0.005)

    def remove(self) -> None:
        """Remove the group, after :meth:`kill`."""
        if self._peak is not None:
            os.close(self._peak)
            self._peak = None
        _remove(self._folder)


class Groups:
    """Where groups are made: a folder below which the memory of groups is limited, with this process in none of them.

    Args:
        base: the folder.
        leaf: the group that this process was moved to, if it was.
    """

    def __init__(self, base: Path, leaf: Path | None = None, proc: Path = _PROC) -> None:
        self._base, self._leaf, self._pid = base, leaf, os.getpid()
        self._prefix = _prefix(proc)
        self._numbers = itertools.count()

    def group(self, memory: float) -> Group:
        """A new group of so many bytes at most.

        Raises:
            OSError: if it cannot be made.
        """
        folder = self._base / f"{self._prefix}-{next(self._numbers)}"
        folder.mkdir()
        try:
            (folder / "memory.max").write_text(_bytes(memory))
            with contextlib.suppress(OSError):  # no swap, or an older kernel
                _write_existing(folder / "memory.swap.max", "0\n")
                _write_existing(folder / "memory.oom.group", "1\n")
        except OSError:
            _remove(folder)
            raise
        return Group(folder)

    def close(self) -> None:
        """This process goes back to where it was, and no group stays."""
        if self._leaf is None or os.getpid() != self._pid:
            return
        with contextlib.suppress(OSError):
            (self._base / "cgroup.subtree_control").write_text("-memory\n")
            for pid in _processes(self._leaf):
                (self._base / "cgroup.procs").write_text(f"{pid}\n")
            _remove(self._leaf)


_lock = threading.Lock()
_found: dict[int, Groups | None] = {}  # by process: a fork has to look for itself


def new_group(memory: float) -> Group | None:
    """A group whose processes have so many bytes together at most; None where this process may make none."""
    with _lock:
        pid = os.getpid()
        if pid not in _found:
            _found[pid] = find()
            if (found := _found[pid]) is not None:
                atexit.register(found.close)
        groups = _found[pid]
    if groups is None:
        return None
    try:
        return groups.group(memory)
    except OSError:
        return None


def find(proc: Path = _PROC, systemd: Path = _SYSTEMD) -> Groups | None:
    """Where this process may make groups; None if it may not, and then nothing was changed."""
    try:
        own = own_folder(proc)
        if own is None:
            return None
        if _NAME.fullmatch(own.name) and own.name.endswith("-self") and _limits(own.parent):
            _sweep(own.parent, proc)  # the process that started this one has moved
            return Groups(own.parent, proc=proc)
        if not _may_be_changed(own, systemd):
            return None
        if _limits(own):
            _sweep(own, proc)
            return Groups(own, proc=proc)
        if not (own / "cgroup.type").exists():  # the root of all, which may have processes
            (own / "cgroup.subtree_control").write_text("+memory\n")
            return Groups(own, proc=proc)
        return _moved(own, proc)
    except (OSError, ValueError):
        return None


def own_folder(proc: Path = _PROC) -> Path | None:
    """The folder of this process's group; None if there is no version 2, or what is mounted does not show it."""
    path = next(
        (line[3:] for line in (proc / "self" / "cgroup").read_text().splitlines() if line.startswith("0::")), None
    )
    if path is None:
        return None
    for line in (proc / "self" / "mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split(" ")[0] != "cgroup2":
            continue
        root, mounted = (_unescaped(word) for word in fields.split(" ")[3:5])
        inside = os.path.relpath(path, root)
        if inside.split("/")[0] != "..":
            return Path(mounted) / inside
    return None


def _moved(own: Path, proc: Path) -> Groups | None:
    """Below the own group, after this process has moved into a group there; nothing if others are in it too."""
    leaf = own / f"{_prefix(proc)}-self"
    leaf.mkdir()
    try:
        for pid in _processes(own):
            (leaf / "cgroup.procs").write_text(f"{pid}\n")
        (own / "cgroup.subtree_control").write_text("+memory\n")
    except OSError:
        for pid in _processes(leaf):
            with contextlib.suppress(OSError):
                (own / "cgroup.procs").write_text(f"{pid}\n")
        _remove(leaf)
        return None
    return Groups(own, leaf, proc)


def _may_be_changed(own: Path, systemd: Path) -> bool:
    """Whether the group was handed over to this process, and to it alone."""
    if "memory" not in (own / "cgroup.controllers").read_text().split():
        return False
    if not all(os.access(own / name, os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")):
        return False
    with contextlib.suppress(FileNotFoundError):
        if (own / "cgroup.type").read_text().strip() != "domain":
            return False
    if systemd.exists() and not _handed_over(own):
        return False
    return not (own / "cgroup.type").exists() or all(map(_is_ours, _processes(own)))


def _handed_over(own: Path) -> bool:
    """Whether systemd says so of a group (``Delegate=yes``)."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(own, name) == b"1":  # type: ignore[reportUnknownMemberType, unused-ignore]
                return True
    return False


def _is_ours(pid: int) -> bool:
    """Whether it is this process, or came of it."""
    import psutil  # here, since the command line starts without it

    if pid == os.getpid():
        return True
    try:
        return any(parent.pid == os.getpid() for parent in psutil.Process(pid).parents())
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _limits(folder: Path) -> bool:
    """Whether the memory of groups in a folder is limited, and they may be made."""
    control = folder / "cgroup.subtree_control"
    return "memory" in control.read_text().split() and os.access(folder, os.W_OK)


def _sweep(base: Path, proc: Path) -> None:
    """Remove the empty groups of processes that were killed."""
    for folder in base.iterdir():
        name = _NAME.fullmatch(folder.name)
        if name is not None and _started(int(name[1]), proc) != int(name[2]) and not _processes(folder):
            _remove(folder)


def _prefix(proc: Path) -> str:
    return f"lipbridge-{os.getpid()}-{_started(os.getpid(), proc)}"


def _started(pid: int, proc: Path) -> int | None:
    """When a process began, which tells it from a later one of its number; None if there is none."""
    try:
        return int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None


def _processes(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _remove(folder: Path) -> None:
    """Remove a group and those that its processes made in it, as far as they are empty."""
    with contextlib.suppress(OSError):
        for inner in sorted(folder.rglob("*/"), reverse=True):
            if inner.is_dir():
                inner.rmdir()
        folder.rmdir()


def _bytes(memory: float) -> str:
    return "max\n" if math.isinf(memory) else f"{int(memory)}\n"


def _write_existing(path: Path, text: str) -> None:
    if path.exists():
        path.write_text(text)


def _counts(path: Path) -> dict[str, int]:
    """The lines ``name number`` of a file."""
    try:
        return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
    except (OSError, ValueError):
        return {}


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
