"""Questions about networks in files of others, found through entry points ``lipbridge.queries``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import torch
from torch import Tensor

from lipbridge.errors import UnknownName
from lipbridge.files.plugins import Plugin
from lipbridge.graph.graph import Graph
from lipbridge.problem.property import Property

GROUP = "lipbridge.queries"


class Query(ABC):
    """A question, of a network that was read.

    Attributes:
        graph: the network.
        asked: what no input may do: every counterexample of the file's numbers is one of it. None if nothing can be a
            counterexample, since the file contradicts itself.
        tried: every counterexample of it that holds floats of ``dtype`` is one of the file's numbers, and an input
            that the network takes; None if there is none.
        version: of the format, that the question is written in.
        operators: that the network's file is made of.
    """

    graph: Graph
    asked: Property | None
    tried: Property | None
    dtype: torch.dtype
    version: str
    operators: frozenset[str]

    @abstractmethod
    def inputs(self, assignment: str) -> Tensor | None:
        """``(*input_shape)`` float64: the input of an assignment that a solver printed; None if it is none.

        It is rounded to what the network takes.
        """

    @abstractmethod
    def confirmed(self, x: Tensor) -> str | None:
        """A counterexample as text, if it is one too when the file of the network is run; None if not.

        Args:
            x: ``(*input_shape)`` float64, a counterexample of ``tried`` in exact arithmetic.
        """

    @abstractmethod
    def failing(self, x: Tensor) -> tuple[float, str]:
        """By how much an input misses to be a counterexample when the file is run, and at what, in words.

        Nothing, and no words, if it is one.
        """


@dataclass(frozen=True)
class Listed:
    """A line of a list of questions: files of a network and of a query, and seconds."""

    network: Path
    query: Path
    seconds: float


class QueryFormat(Plugin, ABC):
    """How questions are read. Its module imports its tool when asked.

    Attributes:
        name: what users type.
        suffixes: of its files, lower case, with the dot; ``lists`` those of lists of them.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()

    @abstractmethod
    def read(self, path: Path, networks: Mapping[str, Path], *, as_real: bool = False) -> Query:
        """A question and its network.

        Args:
            path: of the question, which may come from anybody.
            networks: files by the names that the question has for them; one of the name "" is for any name.
            as_real: whether numbers that are declared as floats may be taken as real ones.

        Raises:
            ModelFileError: for what is not understood, in words.
            InvalidArgument: for too few or too many networks.
        """

    @abstractmethod
    def named(self, path: Path, networks: Mapping[str, Path]) -> dict[str, Path]:
        """The networks by the names that the question has for them, where one of any name is given."""

    @abstractmethod
    def write(self, asked: Property, path: Path, version: str) -> None:
        """A file of a property, in a version of the format, with no digit lost.

        Raises:
            UnsupportedProblem: if the version cannot say it.
        """

    @abstractmethod
    def listed(self, path: Path) -> list[Listed]:
        """The lines of a list; files are in its folder.

        Raises:
            ModelFileError: for what is not understood, in words.
        """

    @abstractmethod
    def capabilities(self) -> Mapping[str, Sequence[str]]:
        """What is read, by the names of the standard's options: lines each."""


def list_query_formats() -> list[QueryFormat]:
    """All that are registered, by name."""
    found: list[QueryFormat] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        made = point.load()()
        if not isinstance(made, QueryFormat):
            raise TypeError(f"Entry point {point.value!r} of group {GROUP!r} is no QueryFormat.")
        found.append(made)
    return found


def query_format_of(path: Path) -> tuple[QueryFormat, bool]:
    """The format whose suffix a file has, and whether it is a list.

    Raises:
        UnknownName: with the suffixes that there are.
    """
    formats = list_query_formats()
    for each in formats:
        for suffixes, many in ((each.suffixes, False), (each.lists, True)):
            if str(path).lower().endswith(suffixes):
                return each, many
    known = [suffix for each in formats for suffix in (*each.suffixes, *each.lists)]
    raise UnknownName("kind of query", path.suffix or str(path), known)


__all__ = ["Listed", "Query", "QueryFormat", "list_query_formats", "query_format_of"]
