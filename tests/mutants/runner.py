"""Runs tests on changed copies of the tree, each in a child that was forked with torch and the like imported.

Importing torch takes longer than most tests that notice something, so the parent imports the libraries once, though
nothing of ours, and every change gets a fork of it. Each slot has a copy of the tree of its own.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import hypothesis
import pytest

from tests.mutants.changes import Change

#: What is copied of the tree: all that a test may read.
PARTS = (
    "lipbridge",
    "adapters",
    "tests",
    "benchmarks",
    "docs",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "Makefile",
)
#: How many times the limit of processor time a child may take by the clock: it may sleep, or share a busy machine.
PATIENCE = 10.0
#: Imported before the first fork, where they are installed; none of them may import our packages.
LIBRARIES = (
    "numpy", "scipy.optimize", "scipy.sparse.csgraph", "mpmath", "torch", "torch.nn", "torch.export", "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes", "torch._functorch.aot_autograd", "onnx", "onnxruntime", "cvxpy",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a change: whether a test noticed it, which, and how long that took.

    ``broken`` says why the tests could not be run at all; such an outcome is neither.
    """

    change: Change
    noticed: bool
    by: str
    seconds: float
    broken: bool = False


def prepare() -> None:
    """Import what all children share."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.dont_write_bytecode = True
    for name in LIBRARIES:
        with suppress(ImportError):
            import_module(name)
    import_module("torch").set_num_threads(1)


@contextmanager
def copies(root: Path, count: int) -> Iterator[list[Path]]:
    """Directories that hold a copy of the tree each."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        made = [Path(folder) / str(index) for index in range(count)]
        for copy in made:
            copy.mkdir()
            for part in PARTS:
                source = root / part
                if source.is_dir():
                    shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
                elif source.exists():
                    shutil.copy(source, copy / part)
        yield made


class _Slot:
    """A copy of the tree, and the child that runs in it."""

    def __init__(self, copy: Path) -> None:
        self.copy = copy
        self.log = copy / "output.txt"
        self.child: int | None = None

    def start(self, change: Change, limit: float, *, apply: bool) -> None:
        self.change, self.begun = change, time.monotonic()
        self.path = self.copy / change.file
        self.text = self.path.read_text()
        if apply:
            self.path.write_text(change.applied_to(self.text))
        self.child = _fork(self.copy, self.log, change, limit)

    def finished(self, limit: float) -> Outcome | None:
        assert self.child is not None
        pid, status = os.waitpid(self.child, os.WNOHANG)
        seconds = time.monotonic() - self.begun
        if not pid and seconds < PATIENCE * limit:
            return None
        if not pid:
            os.killpg(self.child, signal.SIGKILL)
            os.waitpid(self.child, 0)
            code, by = 1, f"still running after {seconds:.0f} s"
        else:
            code = os.waitstatus_to_exitcode(status)
            by = _failed(self.log.read_text(errors="replace")) if code else ""
            if code in (-signal.SIGXCPU, -signal.SIGKILL):
                by = f"still running after {limit:.0f} s of processor time"
        self.child = None
        self.path.write_text(self.text)
        # 1: a test failed, 2: one could not be imported, negative: it died. 4 and 5 are faults of the list.
        return Outcome(self.change, code not in (0, 4, 5), by, seconds, broken=code in (4, 5))


def _fork(copy: Path, log: Path, change: Change, limit: float) -> int:
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        os.setsid()
        # Of processor time: how loaded the machine is does not matter.
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 1))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "adapters")]
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        # Examples are found, not made small: it is the fact that counts.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", deadline=None, derandomize=True, database=None, phases=phases)
        options = [
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
            "--hypothesis-profile=mutants",
            "-m",
            "not slow",
        ]
        code = 0 if change.likely is None else int(pytest.main([*options, change.likely]))
        if code in (0, 4, 5):  # it passes, or is not there any more
            code = int(pytest.main([*options, *change.tests]))
    finally:
        os._exit(code)


def _failed(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[-1].split(" - ")[0].split(" ", 1)[1] if lines else "the tests died: " + output.strip()[-200:]


def run(
    changes: Sequence[Change],
    copied: Sequence[Path],
    limit: float,
    done: Callable[[Outcome], None],
    *,
    apply: bool = True,
) -> list[Outcome]:
    """The outcomes of all changes, in the order in which they end; ``apply=False`` leaves the tree as it is."""
    waiting, slots, outcomes = list(reversed(changes)), [_Slot(copy) for copy in copied], list[Outcome]()
    while waiting or any(slot.child is not None for slot in slots):
        for slot in slots:
            outcome = slot.finished(limit) if slot.child is not None else None
            if outcome is not None:
                outcomes.append(outcome)
                done(outcome)
            if slot.child is None and waiting:
                slot.start(waiting.pop(), limit, apply=apply)
        time.sleep(0.02)
    return outcomes
