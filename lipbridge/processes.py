"""Resident memory of processes, read from the system itself."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """The resident memory of a process and all its children now; 0 if it has ended."""
    if not (_PROC / "self").exists():
        return _resident_by_ps(pid)
    try:
        pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
        children = (_PROC / str(pid) / "task" / str(pid) / "children").read_text().split()
    except (OSError, IndexError, ValueError):
        return 0
    return pages * _PAGE + sum(resident_bytes(int(child)) for child in children)


def _resident_by_ps(pid: int) -> int:
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(found.stdout) * 1024 if found.stdout.strip().isdigit() else 0


def own_peak_bytes() -> int:
    """The peak resident memory of this process so far."""
    try:
        for line in (_PROC / "self" / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Elsewhere getrusage; on Linux it would include the peak of the parent up to the fork.
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
