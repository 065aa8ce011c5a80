"""Somebody's verifiers that sleep, crash, eat memory, write garbage and fork; each says what it is told to say."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''
import os, signal, subprocess, sys, time

from lipbridge.constants.trivial import trivial_bound
from lipbridge.problem.bound import Bound
from lipbridge.verifiers import Option, Task, Verifier
from lipbridge.vocabulary import Side


class Base(Verifier):
    summary, norms, proved, by_default = "for tests of chaos", "2", True, False
    options = (Option(name="number", type=int, default=0, help="tells cells apart"),)

    @property
    def name(self):
        return type(self).__name__.lower()

    def prepare(self, problem):
        return Work(self, problem)


class Work(Task):
    def __init__(self, verifier, problem):
        self.verifier, self.problem = verifier, problem

    def bound(self, budget):
        self.verifier.misbehave(budget)
        value = trivial_bound(self.problem.graph, 2).value * (2.0 + budget.options.get("number", 0))
        return Bound(value=value, side=Side.UPPER, proved=True, question=self.problem.question, method="chaos")


class Calm(Base):
    def misbehave(self, budget):
        pass


class Sleepy(Base):
    """Never ends, and neither does a child of its own."""

    def misbehave(self, budget):
        subprocess.Popen(["sleep", "3600.125"])
        time.sleep(3600)


class Segfault(Base):
    def misbehave(self, budget):
        os.kill(os.getpid(), signal.SIGSEGV)


class Hungry(Base):
    def misbehave(self, budget):
        kept = []
        while True:
            kept.append(b"x" * 2**26)
            time.sleep(0.01)


class Garbage(Base):
    """Floods its output, and writes what it should not into the folder of its answer."""

    def misbehave(self, budget):
        for name in ("row.json", "cell.json", "started"):
            with open(os.path.join(os.environ["TMPDIR"], name), "wb") as file:
                file.write(os.urandom(4096))
        for _ in range(64):
            os.write(1, os.urandom(2**20))
            os.write(2, os.urandom(2**20))
        os._exit(3)


class Forks(Base):
    """Children that leave the session and the parent, and an answer all the same."""

    def misbehave(self, budget):
        for _ in range(3):
            subprocess.Popen(["sleep", "3600.125"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "3600.125"])
            os._exit(0)
'''

#: Verifier -> the status of its rows.
STATUSES = {
    "calm": "ok",
    "sleepy": "timeout",
    "segfault": "failed",
    "hungry": "memory",
    "garbage": "failed",
    "forks": "ok",
}


def install(folder: Path) -> Path:
    """Write the package and its metadata, as an installer would; returns the folder for ``PYTHONPATH``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chaos_verifiers.py").write_text(SOURCE)
    metadata = folder / "chaos_verifiers-1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos-verifiers\nVersion: 1.0\n")
    points = "\n".join(f"{name} = chaos_verifiers:{name.title()}" for name in STATUSES)
    (metadata / "entry_points.txt").write_text(f"[lipbridge.verifiers]\n{points}\n")
    return folder


def study(model: Path, numbers: int, networks: int = 1) -> str:
    """A study file: every verifier with every number on every network, and the witness search: six cells a number."""
    found = ['name = "chaos"', "[limits]", "time = 1.0", 'memory = "700M"', "threads = 1", "[engine]", "jobs = 2"]
    for index in range(networks):
        found += ["[[models]]", f'name = "net{index}"', f'path = "{model}"']
    for name in STATUSES:
        for number in range(numbers):
            found += [
                "[[verifiers]]",
                f'name = "{name}"',
                f'label = "{name} {number}"',
                f"options = {{ number = {number} }}",
            ]
    found += ["[[problems]]", "norm = 2"]
    return "\n".join(found) + "\n"
