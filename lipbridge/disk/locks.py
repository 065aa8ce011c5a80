"""A folder that one process at a time writes into: a lock of the operating system, which ends with its process.

The lock is on a file of its own that stays in the folder. It is ``flock``, which Linux and macOS keep on local disks
and, as a lock of the server's, on NFS and SMB; where a file system has none, filelock falls back on a file that is
there or not, or the folder is refused. What the file says is no lock: the holder's name stands beside it, for people.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lipbridge.disk.atomic import write_atomically
from lipbridge.disk.strict_json import parse_json
from lipbridge.errors import FileNotWritten, FolderInUse

LOCK, HOLDER = ".lock", ".holder.json"


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Hold an existing folder, until the end of the block or of the process, however that comes.

    Raises:
        FolderInUse: if another holds it, also another thread of this process; nobody waits.
        FileNotWritten: if the file of the lock cannot be written, or its file system keeps no locks.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(str(folder), holder(folder)) from None
    except OSError as error:
        raise FileNotWritten(folder / LOCK, error) from error
    try:
        with suppress(OSError):  # on a full disk the holder has no name
            (folder / HOLDER).unlink(missing_ok=True)
            write_atomically(folder / HOLDER, json.dumps(_myself()).encode())
        yield
    finally:
        try:
            with suppress(OSError):
                (folder / HOLDER).unlink()
        finally:
            lock.release()


def is_held(folder: Path) -> bool:
    """Whether another process, or another part of this one, holds the folder now; for those who look on."""
    from filelock import FileLock, Timeout

    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def holder(folder: Path) -> str:
    """Who holds the folder, or held it last, in words."""
    try:
        found: Any = parse_json((folder / HOLDER).read_bytes())
        pid, host, command, since = (str(found[name]) for name in ("pid", "host", "command", "since"))
    except (OSError, ValueError, TypeError, LookupError):
        return "another process"
    text = f"process {pid} on {host} ({command}), since {since}"
    return "".join(c if c.isprintable() else "?" for c in text)[:400]


def _myself() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join([os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]])[:200],
        "since": datetime.now(UTC).isoformat(" ", timespec="seconds"),
    }
