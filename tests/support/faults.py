"""A disk that fills up, or a process that dies, at the k-th operation that changes files: simulated, for every k."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

import pytest

Mode = Literal["kill", "full", "once"]
#: What takes room, and what does not.
_GROWING, _OTHER = ("mkdir", "fsync", "replace", "rename"), ("unlink", "remove", "rmdir")


class Killed(BaseException):
    """The process has ended: no operation after this one changes anything."""


class Disk:
    """Counts the operations of this process that change files, and lets the ``at``-th fail, from 0.

    ``kill``: it and all later ones do nothing but unwind, as after SIGKILL. ``full``: it and all later ones that need
    room raise ENOSPC. ``once``: it alone does. Nothing waits for the disk meanwhile.
    """

    def __init__(self, at: int | None = None, mode: Mode = "kill") -> None:
        self.at, self.mode, self.done = at, mode, 0

    def _fails(self, grows: bool) -> bool:
        if self.at is None:
            fails = False
        elif self.mode == "kill":
            fails = self.done >= self.at
        elif self.mode == "full":
            fails = grows and self.done >= self.at
        else:
            fails = grows and self.done == self.at
        self.done += 1
        return fails

    def wrap(self, operation: Callable[..., Any], grows: bool) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if self._fails(grows):
                if self.mode == "kill":
                    raise Killed
                named = [arguments[0]] if isinstance(arguments[0], str | os.PathLike) else []
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)
            return operation(*arguments, **options)

        return wrapped

    def open(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        plain = _OPEN
        return (self.wrap(plain, grows=True) if set(mode) & set("wxa") else plain)(file, mode, *arguments, **options)

    @contextmanager
    def mounted(self) -> Generator[Disk]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builtins, "open", self.open)
            for name in (*_GROWING, *_OTHER):
                plain = os.fstat if name == "fsync" else getattr(os, name)
                patch.setattr(os, name, self.wrap(plain, name in _GROWING))
            yield self


_OPEN = builtins.open
