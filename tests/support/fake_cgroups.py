"""A folder that behaves as control groups do, as far as lipbridge uses them, and a fake /proc beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

FILES = {
    "cgroup.controllers": "cpu memory pids\n",
    "cgroup.subtree_control": "\n",
    "cgroup.procs": "",
    "cgroup.type": "domain\n",
    "cgroup.kill": "",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n",
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "memory.oom.group": "0\n",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "memory.peak": "4096\n",
}


class FakeCgroups:
    """Folders below ``root``; processes are numbers in files, and this process is in ``own``."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, own: str = "a/b") -> None:
        self.root, self.proc, self.systemd = folder / "cgroup", folder / "proc", folder / "systemd"
        self._mkdir, self._rmdir, self._write = Path.mkdir, Path.rmdir, Path.write_text
        patch.setattr(Path, "mkdir", lambda path, *a, **b: self.mkdir(path, *a, **b))
        patch.setattr(Path, "rmdir", lambda path: self.rmdir(path))
        patch.setattr(Path, "write_text", lambda path, text, *a, **b: self.write(path, text, *a, **b))
        self.root.mkdir()
        (self.root / "cgroup.type").unlink()
        self.own = self.root / own
        for parent in reversed([self.own, *self.own.parents][: len(Path(own).parts)]):
            parent.mkdir()
        me = self.proc / str(os.getpid())
        me.mkdir(parents=True)
        stat = ["S", *("0" for _ in range(18)), "12345", "0"]
        (me / "stat").write_text(f"{os.getpid()} (a (name) b) {' '.join(stat)}\n")
        (self.proc / "self").symlink_to(me)
        mounted = f"31 23 0:28 / {self.root} rw,relatime - cgroup2 cgroup2 rw\n"
        (me / "mountinfo").write_text("20 1 0:1 / / rw - ext4 /dev/vda rw\n" + mounted)
        (me / "cgroup").write_text(f"4:memory:/x\n0::/{own}\n")
        (self.own / "cgroup.procs").write_text(f"{os.getpid()}\n")

    def processes(self, folder: Path) -> list[int]:
        return [int(word) for word in (folder / "cgroup.procs").read_text().split()]

    def groups(self) -> list[Path]:
        """Those below the own one."""
        return [path for path in self.own.iterdir() if path.is_dir()]

    def mkdir(self, path: Path, *given: Any, **named: Any) -> None:
        self._mkdir(path, *given, **named)
        if path.is_relative_to(self.root):
            for name, text in FILES.items():
                self._write(path / name, text)

    def rmdir(self, path: Path) -> None:
        if path.is_relative_to(self.root):
            if self.processes(path) or any(inner.is_dir() for inner in path.iterdir()):
                raise OSError(errno.EBUSY, "Device or resource busy")
            for inner in path.iterdir():
                inner.unlink()
        self._rmdir(path)

    def write(self, path: Path, text: str, *given: Any, **named: Any) -> None:
        if path.is_relative_to(self.root):
            if not path.exists():
                raise FileNotFoundError(path)
            if path.name == "cgroup.procs":
                return self._move(path, int(text))
            if path.name == "cgroup.kill":
                self._write(path.parent / "cgroup.procs", "")
            if path.name == "cgroup.subtree_control":
                if text.startswith("+") and self.processes(path.parent) and path.parent != self.root:
                    raise OSError(errno.EBUSY, "Device or resource busy")
                text = "memory\n" if text.startswith("+") else "\n"
        return self._write(path, text, *given, **named)

    def _move(self, path: Path, pid: int) -> None:
        if "memory" in (path.parent / "cgroup.subtree_control").read_text() and path.parent != self.root:
            raise OSError(errno.EBUSY, "Device or resource busy")
        for procs in self.root.rglob("cgroup.procs"):
            left = [found for found in self.processes(procs.parent) if found != pid]
            self._write(procs, "".join(f"{found}\n" for found in left))
        self._write(path, path.read_text() + f"{pid}\n")
