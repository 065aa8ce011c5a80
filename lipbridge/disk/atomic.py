"""Files that are there whole or not at all, whenever the process or the disk ends."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from lipbridge.errors import FileNotWritten, InvalidArgument

#: Seconds after which a temporary file has no writer any more.
STALE = 3600.0


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` so that at any moment, also after ``kill -9``, ``path`` holds the old bytes or the new ones.

    Missing folders are made. The bytes go to a temporary file in the same folder, to the disk, then to the name. What
    a killed writer leaves behind is removed by a later write of the same file, after an hour.

    Raises:
        FileNotWritten: if that fails, e.g. on a full disk; the temporary file is removed and the old file is as it was.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise FileNotWritten(path, error) from error
        raise
    sync_folder(path.parent)
    _sweep(path)
    return path


def require_place(path: Path, name: str) -> None:
    """Check, before any long work, that a file can be written there; ``name`` is what a user calls it.

    Raises:
        InvalidArgument: if it cannot be written.
    """
    if path.is_dir():
        raise InvalidArgument(name, "be a file, not a folder", str(path))
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):  # the only test that holds for every user and file system
            pass
    except OSError as error:
        raise InvalidArgument(name, f"be a file that can be written ({error.strerror})", str(path)) from None


def sync_folder(folder: Path) -> None:
    """Bring to the disk which names a folder has; some file systems cannot, and the files themselves are safe."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_temporary(name: str, file: str) -> bool:
    """Whether ``name`` is one of the names that :func:`write_atomically` gives the bytes of ``file`` on their way."""
    return re.fullmatch(re.escape(f".{file[:100]}.") + r"[0-9a-f]{12}\.tmp", name) is not None


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}.tmp"


def _sweep(path: Path) -> None:
    """Remove temporary files of ``path`` that writers killed long ago left behind."""
    with suppress(OSError):  # another writer may be faster
        for entry in os.scandir(path.parent):
            if is_temporary(entry.name, path.name) and time.time() - entry.stat().st_mtime > STALE:
                os.unlink(entry.path)


__all__ = ["require_place", "write_atomically"]
