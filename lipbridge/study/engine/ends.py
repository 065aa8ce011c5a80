"""What a process that gave no answer leaves to be told."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lipbridge.processes import STDERR, Ended, Limit, last_line
from lipbridge.study.cells import Limits
from lipbridge.study.engine import wire
from lipbridge.study.engine.workers import STARTUP_SECONDS
from lipbridge.vocabulary import Status


def patience(seconds: float) -> float:
    """When a process is ended: what minds its time limit itself has a little longer to hand over what it has."""
    return seconds + max(2.0, 0.1 * seconds)


def without_answer(folder: Path, end: Ended, limits: Limits) -> tuple[Status, str]:
    """The status and the words for a process that ended in ``folder``, or was ended, before it had answered."""
    status, detail = Status.FAILED, ""
    if end.limit is Limit.TIME and not (folder / wire.STARTED).exists():
        detail = f"still importing after {STARTUP_SECONDS:g} s"
    elif end.limit is Limit.TIME:
        status, detail = Status.TIMEOUT, f"stopped at the limit of {limits.seconds:g} s"
    elif end.limit is Limit.MEMORY:
        status, detail = Status.MEMORY, f"stopped at the limit of {limits.memory / 2**20:.0f} MiB"
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
    return status, detail


__all__ = ["patience", "without_answer"]
