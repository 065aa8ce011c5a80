"""Any solver with the command line of VNN-LIB 2.0, run with limits; whatever it does, it ends in an answer.

Source: https://www.vnnlib.org (the standard of version 2.0, December 2025, its chapter on the command line).
"""

from __future__ import annotations

import math
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from lipbridge.errors import InvalidArgument
from lipbridge.files.solvers import Answer, Solver
from lipbridge.problem.property import Verdict
from lipbridge.processes import STDERR, STDOUT, Limit, last_line, run_child

#: What the standard has, and what solvers of VNN-COMP print besides.
WORDS = {
    "unsat": Verdict.VERIFIED,
    "sat": Verdict.FALSIFIED,
    "unknown": Verdict.UNKNOWN,
    "timed-out": Verdict.TIMEOUT,
    "timeout": Verdict.TIMEOUT,
}
#: Seconds that are given for the start, and bytes of the output that are read.
START, MOST_OUTPUT = 30.0, 2**26
#: The exit code of a proof among SAT solvers.
UNSAT = 20


class CommandSolver(Solver):
    """A command, as ``vibecheck`` or ``python -m solver``."""

    def __init__(self, words: str) -> None:
        """Find it.

        Args:
            words: the command, as a shell has it.

        Raises:
            InvalidArgument: if there is no such command.
        """
        try:
            self.command = shlex.split(words)
        except ValueError as error:
            raise InvalidArgument("--solver", f"be a command ({error})", words) from None
        program = shutil.which(self.command[0]) if self.command else None
        if program is None:
            raise InvalidArgument("--solver", "be a command that can be run, or its path", words)
        self.command[0] = str(Path(program).absolute())
        self.name = Path(program).name if len(self.command) == 1 else words
        self._startup: list[float | None] = []  # what was measured

    def startup(self) -> float | None:
        """Of ``supports --vnnlib-versions``."""
        if not self._startup:
            self._startup.append(self._measured())
        return self._startup[0]

    def _measured(self) -> float | None:
        with tempfile.TemporaryDirectory() as folder:
            command = [*self.command, "supports", "--vnnlib-versions"]
            began = time.perf_counter()
            try:
                run_child(command, Path(folder), seconds=START, memory=math.inf)
            except OSError:
                return None
            return time.perf_counter() - began

    def answer(self, query: Path, networks: Mapping[str, Path], seconds: float, memory: float) -> Answer:
        """Of ``verify``."""
        command = [*self.command, "verify", str(query.absolute())]
        for name, file in networks.items():
            command += ["--network", f"{name}={file.absolute()}"]
        command += ["--timeout", str(max(1, math.ceil(seconds)))]
        with tempfile.TemporaryDirectory() as kept:
            folder = Path(kept)
            began = time.perf_counter()
            try:
                ended = run_child(command, folder, seconds=seconds + START, memory=memory)
            except OSError as error:
                return Answer(Verdict.ERROR, "", time.perf_counter() - began, f"it cannot be run: {error.strerror}")
            spent = time.perf_counter() - began
            if ended.limit is Limit.TIME:
                words = f"it did not end by itself and was stopped after {spent:.0f} s"
                return Answer(Verdict.TIMEOUT, "", spent, words)
            if ended.limit is Limit.MEMORY:
                return Answer(Verdict.ERROR, "", spent, f"it took {ended.memory / 2**30:.1f} GiB and was stopped")
            with open(folder / STDOUT, "rb") as out:
                text = out.read(MOST_OUTPUT).decode(errors="replace")
            told = last_line(folder / STDERR) or last_line(folder / STDOUT)
        return self._read(text, told, ended.code, spent)

    def _read(self, text: str, told: str, code: int | None, spent: float) -> Answer:
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


__all__ = ["CommandSolver"]
