"""File formats, found through the entry-point group ``lipbridge.formats``: ours, and anybody's package."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from lipbridge.errors import InvalidArgument, UnknownName
from lipbridge.files.plugins import Plugin

if TYPE_CHECKING:
    from lipbridge.graph.graph import Graph

GROUP = "lipbridge.formats"


class Format(Plugin, ABC):
    """How files of one format become Graphs, and Graphs become such files. Its module imports its tool when asked.

    Attributes:
        name: what users type, as in ``export --to onnx``.
        title: what sentences call it, as in "come with an ONNX file".
        summary: one line for people.
        suffixes: of its files, lower case, with the dot.
        takes: what can be said of how a file is read, of ``input_shape`` and ``output``.
        dialects: that it is written in, the usual one first; none if there is but one way.
    """

    name: str
    title: str
    summary: str
    suffixes: tuple[str, ...]
    takes: tuple[str, ...] = ()
    dialects: tuple[str, ...] = ()

    @abstractmethod
    def read(
        self, path: Path, *, input_shape: Sequence[int] | None = None, output: str | None = None
    ) -> tuple[Graph, tuple[str, ...]]:
        """The network of a file, and what a reader of its bound should know of how it was read, in lines.

        Args:
            path: the file, which may come from anybody.
            input_shape: of one input, for files that leave it open.
            output: the value to stop at, for files that have several.

        Raises:
            ModelFileError: for a file that is missing, damaged or hostile.
            UnsupportedOperation: for what no node of a Graph can be.
        """

    @abstractmethod
    def write(self, graph: Graph, path: Path, dialect: str | None = None) -> dict[str, object]:
        """Write a network, atomically; what a program should know of the file, ready for JSON.

        ``note``, if it is among that, is a line for people alone.

        Raises:
            UnsupportedProblem, UnsupportedOperation: for a network that the format cannot hold.
            ModelFileError: if the file cannot be written.
        """

    def supported(self) -> tuple[Sequence[int], Sequence[str]]:
        """Versions of the format that are read, in order, and names of its operators; none where it has none."""
        return (), ()


def list_formats() -> list[Format]:
    """All registered formats, by name; what a broken package registers is left out."""
    found: list[Format] = []
    for _, point in sorted(_points().items()):
        try:
            found.append(_load(point))
        except Exception:  # anybody's code: it is told to who asks for it by name
            continue
    return found


def get_format(name: str, dialect: str | None = None) -> Format:
    """A format by name, which has the dialect if one is given.

    Raises:
        UnknownName: with the formats, or the format's dialects, that there are.
    """
    points = _points()
    if name not in points:
        raise UnknownName("format", name, sorted(points))
    found = _load(points[name])
    if dialect is not None and dialect not in found.dialects:
        raise UnknownName(f"{name} dialect", dialect, found.dialects or ["none"])
    return found


def format_of(path: str | os.PathLike[str], formats: Iterable[Format]) -> Format | None:
    """The format whose suffix a file has, the longest one where several fit; None if there is none."""
    fitting = [(len(suffix), each) for each in formats for suffix in each.suffixes if _ends(path, suffix)]
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def format_to_write(path: str | os.PathLike[str], name: str | None, dialect: str | None) -> Format:
    """The format of a file to write: the named one, or the one whose suffix it has.

    Raises:
        UnknownName: for a format or dialect that there is not.
        InvalidArgument: if none is named, and the file has no format's suffix.
    """
    if name is None:
        found = format_of(path, list_formats())
        if found is None:
            names = ", ".join(sorted(_points()))
            raise InvalidArgument("--to", f"name a format ({names}), as the file's suffix names none", str(path))
        name = found.name
    return get_format(name, dialect)


def without_suffix(path: str | os.PathLike[str], format: Format | None) -> str:
    """The name of a file without its folder and without the suffix of its format, or its last one if it has none."""
    name = Path(path).name
    if format is None:
        return Path(name).stem
    return name[: -max(len(suffix) for suffix in format.suffixes if _ends(name, suffix))] or name


def _ends(path: str | os.PathLike[str], suffix: str) -> bool:
    return os.fspath(path).lower().endswith(suffix)


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> Format:
    found = point.load()()
    if not isinstance(found, Format):
        raise TypeError(f"Entry point {point.value!r} of group {GROUP!r} is no Format.")
    lacking = [fact for fact in Format.__annotations__ if not hasattr(found, fact)]
    if lacking:
        raise TypeError(f"Entry point {point.value!r} of group {GROUP!r} has no {', '.join(lacking)}.")
    return found
