"""Folders of networks and properties for other verifiers, found through entry points ``lipbridge.benchmarks``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from lipbridge.errors import UnknownName
from lipbridge.files.plugins import Plugin
from lipbridge.graph.graph import Graph
from lipbridge.problem.claim import LipschitzClaim
from lipbridge.problem.property import Judgement, Property

GROUP = "lipbridge.benchmarks"


@dataclass(frozen=True, eq=False)
class Instance:
    """A property of a network, by a name that is a file's, and what we know of it."""

    name: str
    asked: Property
    known: Judgement


class Benchmark(Plugin, ABC):
    """How a folder of questions is written. Its module imports its tool when asked.

    Attributes:
        name: what users type, as in ``export --to vnncomp``.
        summary: one line for people.
    """

    name: str
    summary: str

    @abstractmethod
    def network(self, graph: Graph, folder: Path) -> tuple[Graph, bool]:
        """Write a network into a folder; the network that the file holds, and whether nothing was rounded for it."""

    @abstractmethod
    def questions(self, folder: Path, instances: Sequence[Instance], timeout: int) -> list[Path]:
        """Write the instances of the network that was written; all files, the list of instances first.

        Args:
            folder: of :meth:`network`.
            instances: of that network.
            timeout: whole seconds that a verifier is given for each.
        """

    @abstractmethod
    def pairs(self, graph: Graph, folder: Path, claim: LipschitzClaim, known: Sequence[Instance], timeout: int) -> None:
        """Write a claim about a network once more, as questions of two networks that are equal, with what is known.

        Args:
            graph: the network itself.
            folder: of :meth:`questions`, where the same is asked of its twin.
            claim: what is asked.
            known: the instances there, in the order of ``claim.properties``.
            timeout: as in :meth:`questions`.
        """


def benchmark_names() -> list[str]:
    """Of all that are registered."""
    return sorted(point.name for point in entry_points(group=GROUP))


def get_benchmark(name: str) -> Benchmark:
    """By its name.

    Raises:
        UnknownName: with the names that there are.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        raise UnknownName("benchmark", name, sorted(points))
    found = points[name].load()()
    if not isinstance(found, Benchmark):
        raise TypeError(f"Entry point {points[name].value!r} of group {GROUP!r} is no Benchmark.")
    return found


__all__ = ["Benchmark", "Instance", "benchmark_names", "get_benchmark"]
