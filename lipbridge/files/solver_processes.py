"""Solvers that are programs: run with limits, and whatever they do, they end in an answer."""

from __future__ import annotations

import math
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from lipbridge.errors import InvalidArgument, LipbridgeError, MissingDependency
from lipbridge.files.solvers import Answer, Asked, Solver
from lipbridge.problem.property import Verdict
from lipbridge.processes import STDERR, STDOUT, Limit, last_line, run_child

#: What the standard has, and what solvers of VNN-COMP print besides.
WORDS = {
    "unsat": Verdict.VERIFIED,
    "sat": Verdict.FALSIFIED,
    "unknown": Verdict.UNKNOWN,
    "timed-out": Verdict.TIMEOUT,
    "timeout": Verdict.TIMEOUT,
    "holds": Verdict.VERIFIED,
    "violated": Verdict.FALSIFIED,
}
#: Seconds that are given for the start, and bytes of the output that are read.
START, MOST_OUTPUT = 30.0, 2**26
#: The exit code of a proof among SAT solvers.
UNSAT = 20


class ProcessSolver(Solver):
    """A program that is handed files and seconds, and prints, or writes to a file, a verdict and a counterexample."""

    #: What its verdict is in: what it printed, if it is no file that it writes.
    answer_file = STDOUT

    def __init__(self, words: str) -> None:
        """One that takes no words, and is installed."""
        if words:
            raise InvalidArgument("--solver", f"be `{self.name}` alone", f"{self.name} {words}")
        if self.missing():
            raise MissingDependency(f"Verifier `{self.name}`", self.missing())

    @abstractmethod
    def command(self, asked: Asked, seconds: float, folder: Path) -> Sequence[str]:
        """What is run.

        Args:
            asked: the query.
            seconds: that it is to be told.
            folder: empty; what is written there is gone afterwards.

        Raises:
            LipbridgeError: if the query cannot be put to it.
        """

    @abstractmethod
    def starts(self) -> Sequence[str]:
        """A command that does no more than start it."""

    def assignment(self, folder: Path, after: str) -> str:
        """Its counterexample: what stands behind the verdict, if it is nowhere else."""
        return after

    def environment_variables(self) -> Mapping[str, str]:
        """In addition to those of this process."""
        return {}

    def startup(self) -> float | None:
        """Of the command that does no more."""
        return self._measured

    @cached_property
    def _measured(self) -> float | None:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            try:
                run_child(
                    self.starts(),
                    Path(folder),
                    seconds=START,
                    memory=math.inf,
                    environment=self.environment_variables(),
                )
            except (OSError, LipbridgeError):
                return None
            return time.perf_counter() - began

    def answer(self, asked: Asked, seconds: float, memory: float) -> Answer:
        """Of the program, which is ended a while after the seconds."""
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as kept:
            folder = Path(kept)
            try:
                command = self.command(asked, seconds, folder)
            except LipbridgeError as error:
                return Answer(Verdict.ERROR, "", time.perf_counter() - began, " ".join(str(error).split()))
            began = time.perf_counter()
            try:
                ended = run_child(
                    command,
                    folder,
                    seconds=seconds + START,
                    memory=memory,
                    environment={**self.environment_variables(), "TMPDIR": kept},
                )
            except OSError as error:
                return Answer(Verdict.ERROR, "", time.perf_counter() - began, f"it cannot be run: {error.strerror}")
            spent = time.perf_counter() - began
            if ended.limit is Limit.TIME:
                words = f"it did not end by itself and was stopped after {spent:.0f} s"
                return Answer(Verdict.TIMEOUT, "", spent, words)
            if ended.limit is Limit.MEMORY:
                return Answer(Verdict.ERROR, "", spent, f"it took {ended.memory / 2**30:.1f} GiB and was stopped")
            text = _beginning(folder / self.answer_file)
            told = last_line(folder / STDERR) or last_line(folder / STDOUT)
            found = _read(text, told, ended.code, spent)
            if found.verdict is Verdict.FALSIFIED:
                return replace(found, assignment=self.assignment(folder, found.assignment))
        return found


def _beginning(file: Path) -> str:
    try:
        with open(file, "rb") as out:
            return out.read(MOST_OUTPUT).decode(errors="replace")
    except OSError:
        return ""


def _read(text: str, told: str, code: int | None, spent: float) -> Answer:
    lines = text.splitlines()
    place = next((i for i, line in enumerate(lines) if line.strip().lower() in WORDS), None)
    verdict = None if place is None else WORDS[lines[place].strip().lower()]
    # A code of its own for each verdict is usual; but a proof of one that failed afterwards is none.
    fine = code == 0 or (code is not None and code > 0 and verdict not in (None, Verdict.VERIFIED))
    if not fine and not (verdict is Verdict.VERIFIED and code == UNSAT):
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return Answer(Verdict.ERROR, "", spent, f"it ended with {how}: {told or 'it printed nothing'}")
    if place is None or verdict is None:
        return Answer(Verdict.ERROR, "", spent, f"it gave no verdict: {told or 'it printed nothing'}")
    return Answer(verdict, "\n".join(lines[place + 1 :]) if verdict is Verdict.FALSIFIED else "", spent, "")


__all__ = ["START", "ProcessSolver"]
