"""Other verifiers of queries, found through entry points ``lipbridge.solvers``; what they say is a claim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from lipbridge.problem.property import Verdict

GROUP = "lipbridge.solvers"


@dataclass(frozen=True)
class Answer:
    """What a solver said of a query.

    Attributes:
        verdict: ``error`` if it did not say any.
        assignment: what it printed after ``sat``.
        seconds: wall time, its start included.
        detail: of an error, in words.
    """

    verdict: Verdict
    assignment: str
    seconds: float
    detail: str


class Solver(ABC):
    """A verifier of queries in files. Entry points make it from the words that follow its name.

    Attributes:
        name: what tables call it.
    """

    name: str

    @abstractmethod
    def answer(self, query: Path, networks: Mapping[str, Path], seconds: float, memory: float) -> Answer:
        """Ask it; nothing of it runs afterwards.

        Args:
            query: the file.
            networks: files by the names that the query has for them.
            seconds: for the answer; a little more is given for its start.
            memory: limit in bytes.
        """

    @abstractmethod
    def startup(self) -> float | None:
        """Seconds that it takes to start, measured once; None if it cannot be started."""


def get_solver(words: str) -> Solver:
    """A registered solver, or a command with the command line that VNN-LIB 2.0 asks for.

    Raises:
        InvalidArgument: for a command that cannot be run.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    first, _, rest = words.strip().partition(" ")
    found = points[first].load()(rest) if first in points else points["command"].load()(words)
    if not isinstance(found, Solver):
        raise TypeError(f"Entry point {first!r} of group {GROUP!r} is no Solver.")
    return found


__all__ = ["Answer", "Solver", "get_solver"]
