"""Other verifiers of queries, found through entry points ``lipbridge.solvers``; what they say is a claim."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from lipbridge.errors import LipbridgeError, UnknownName, UnsupportedProblem
from lipbridge.files.environments import Environment
from lipbridge.files.formats import format_to_write
from lipbridge.files.queries import Query, QueryFormat
from lipbridge.problem.property import Property, Verdict

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


@dataclass(frozen=True, eq=False)
class Asked:
    """A query as files, and as we read it, so that each solver can have it in the form that it reads.

    Attributes:
        query: the file; ``kind`` is its format.
        networks: files by the names that the query has for them.
        read: None if we do not understand it.
    """

    query: Path
    networks: Mapping[str, Path]
    kind: QueryFormat
    read: Query | None

    def understood(self) -> tuple[Query, Property]:
        """As we read it, which some counterexample may exist for.

        Raises:
            UnsupportedProblem: if we do not understand it, or it contradicts itself.
        """
        if self.read is None:
            raise UnsupportedProblem("it is asked in a form that we write, and we do not understand the query")
        if self.read.asked is None:
            raise UnsupportedProblem("the query contradicts itself, so there is nothing to be asked")
        return self.read, self.read.asked

    def network_of(self, operators: frozenset[str], folder: Path) -> Path:
        """The network's file, or the same network of the operators Gemm, Conv, Relu and such alone.

        Args:
            operators: those that may be in the file.
            folder: where a file may be written.

        Raises:
            UnsupportedProblem, UnsupportedOperation: if it cannot be written so.
        """
        read, _ = self.understood()
        own = next(iter(self.networks.values()))
        if read.operators <= operators and own.suffix == ".onnx":
            return own
        file = folder / "network.onnx"
        format_to_write(file, None, "relu").write(read.graph, file, "relu")
        return file

    def query_of(self, version: str, folder: Path) -> Path:
        """The query's file, or the same query in another version.

        Raises:
            UnsupportedProblem: if it cannot be written so.
        """
        read, asked = self.understood()
        if read.version == version and self.query.suffix == self.kind.suffixes[0]:
            return self.query
        file = folder / f"query{self.kind.suffixes[0]}"
        self.kind.write(asked, file, version)
        return file


class Solver(ABC):
    """A verifier of queries in files. Entry points make it from the words that follow its name.

    Attributes:
        name: what tables call it.
        summary: one line for people: what it reads, by which method.
        environment: its own Python environment, if we can make it; where ``words`` are needed, what they are.
    """

    name: str
    summary: str = ""
    environment: Environment | None = None
    words: str = ""

    @abstractmethod
    def __init__(self, words: str) -> None:
        """Find it.

        Args:
            words: what stands behind its name; of a command, the command itself.

        Raises:
            InvalidArgument: for words that it cannot take.
            MissingDependency: if it is not installed, with the command that does it.
        """

    @abstractmethod
    def answer(self, asked: Asked, seconds: float, memory: float) -> Answer:
        """Ask it; nothing of it runs afterwards.

        Args:
            asked: the query.
            seconds: for the answer; a little more is given for its start.
            memory: limit in bytes.
        """

    @abstractmethod
    def startup(self) -> float | None:
        """Seconds that it takes to start, measured once; None if it cannot be started."""

    @classmethod
    def missing(cls) -> str:
        """The command that installs what is missing; nothing if it can be run."""
        return "" if cls.environment is None or cls.environment.ready else cls.environment.command


@dataclass(frozen=True)
class SolverInfo:
    """A row of what ``verify --solver`` takes: ``install`` is the command, or what to do, if it is not installed."""

    name: str
    summary: str
    installed: bool
    install: str
    package: str


def get_solver(words: str) -> Solver:
    """A registered solver, or a command with the command line that VNN-LIB 2.0 asks for.

    Raises:
        InvalidArgument: for a command that cannot be run.
        MissingDependency: for a solver that is not installed, with the command that does it.
    """
    points = _points()
    first, _, rest = words.strip().partition(" ")
    return _load(points[first])(rest.strip()) if first in points else _load(points["command"])(words)


def list_solvers() -> list[SolverInfo]:
    """All that are registered, by name; a broken foreign package is a row too."""
    found: list[SolverInfo] = []
    for name, point in sorted(_points().items()):
        package = point.dist.name if point.dist else "unknown"
        try:
            kind = _load(point)
            needs = kind.missing()
            found.append(SolverInfo(name, kind.summary, not needs and not kind.words, needs or kind.words, package))
        except Exception as error:  # anybody's code
            found.append(SolverInfo(name, f"broken: {error}", False, "", package))
    return found


def environment_of(name: str) -> Environment:
    """The environment that we can make for a solver.

    Raises:
        UnknownName: with the solvers that have one.
    """
    known: dict[str, Environment] = {}
    for each, point in _points().items():
        try:
            made = _load(point).environment
        except (LipbridgeError, TypeError, ImportError):
            continue
        if made is not None:
            known[each] = made
    if name not in known:
        raise UnknownName("verifier that is installed in an environment of its own", name, sorted(known))
    return known[name]


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> type[Solver]:
    kind = point.load()
    if not isinstance(kind, type) or not issubclass(kind, Solver):
        raise TypeError(f"Entry point {point.value!r} of group {GROUP!r} is no Solver.")
    return kind


__all__ = ["Answer", "Asked", "Solver", "SolverInfo", "environment_of", "get_solver", "list_solvers"]
