"""Temporary folders that do not stay: not after an error, Ctrl-C, SIGTERM or SIGHUP, and after SIGKILL until the next.

Each is locked by its process, so that a later one can tell whether it is alive, on whatever machine and in whatever
container: what is locked is never removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from lipbridge.disk.locks import HOLDER, LOCK, held
from lipbridge.errors import LipbridgeError

#: Short, since solvers put sockets there, whose names some systems limit to 104 bytes.
PREFIX = "lipbridge-"
#: Seconds after which a folder whose process never said that it holds it has no process any more.
STALE = 3600.0


@contextmanager
def temporary_folder(prefix: str = PREFIX, parent: Path | None = None) -> Generator[Path]:
    """A new folder in ``parent`` (that of the system if not given), removed with all that is in it at the end.

    Those that processes killed with SIGKILL left there under the same prefix are removed first.

    Raises:
        OSError: if it cannot be made.
    """
    sweep(prefix, parent)
    with (
        ended_in_order(),
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as name,
        held(Path(name)),
    ):
        yield Path(name)


def sweep(prefix: str = PREFIX, parent: Path | None = None) -> None:
    """Remove this user's temporary folders whose process is dead."""
    with suppress(OSError):
        for entry in os.scandir(parent or tempfile.gettempdir()):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                with suppress(OSError, LipbridgeError):  # it is alive, or another process removes it
                    _remove_if_dead(Path(entry.path))


def _remove_if_dead(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.getuid():
        return
    # The holder says its name when it has the lock: without a name it may be about to take it.
    young = time.time() - status.st_mtime < STALE
    if not (folder / HOLDER).exists() and young:
        return
    if not (folder / LOCK).exists():
        folder.rmdir()  # what is not empty and has no lock is not ours
        return
    with held(folder):
        shutil.rmtree(folder, ignore_errors=True)


class _Ended(BaseException):
    """A signal that unwinds the stack."""


@contextmanager
def ended_in_order() -> Generator[None]:
    """A signal that would end the process at once ends it after the clean-up of the block, as Ctrl-C does.

    Handlers of the user's own stay, and so do ignored signals (``nohup``). Outside of the main thread, where Python
    takes no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def unwind(number: int, _: FrameType | None) -> None:
        if not received:
            received.append(number)
            raise _Ended

    taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, unwind)
        yield
    except _Ended:
        if not received:  # it is an outer block's
            raise
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if received:  # now as if nobody had caught it, so that who started this process sees how it ended
            os.kill(os.getpid(), received[0])
