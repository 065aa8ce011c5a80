"""The errors of lipbridge: each takes facts and writes the sentence that names the problem and the way out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable


class LipbridgeError(Exception):
    """Base of every error that lipbridge raises on purpose. Its text is one line, fit for a person."""


class InvalidArgument(LipbridgeError, ValueError):
    """A parameter has a value outside its domain."""

    def __init__(self, parameter: str, should: str, found: object) -> None:
        super().__init__(f"Parameter `{parameter}` should {should}. Found {_shown(found)}.")
        self.parameter, self.should = parameter, should


class Misfit(InvalidArgument):
    """Two arguments that do not fit together, e.g. a module and data: says what each of them is."""

    def __init__(self, parameter: str, fact: str, way_out: str) -> None:
        LipbridgeError.__init__(self, f"{fact}. {way_out}.")
        self.parameter, self.should = parameter, ""


class UnknownName(LipbridgeError, ValueError):
    """A name that no registry knows, with the names that it does know."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"Unknown {kind} {_shown(name)}. Known: {', '.join(self.known)}.")


class UnsupportedOperation(LipbridgeError, ValueError):
    """A layer or operation outside the closed set of Graph nodes. Nothing is ever dropped silently."""

    def __init__(self, layer: str, operation: str, hint: str = "") -> None:
        super().__init__(f"Layer `{layer}`: operation {operation} is not supported. {hint}".rstrip())
        self.layer = layer
        self.operation = operation


class UnsupportedProblem(LipbridgeError, ValueError):
    """A verifier, norm pair or region that cannot be handled, and why."""


class NumericalFailure(LipbridgeError, ArithmeticError):
    """A proof that could not be completed in floating point (overflow, NaN, no margin left). Never a number."""


class MissingDependency(LipbridgeError, ImportError):
    """A tool that is not installed, with the command that installs it."""

    def __init__(self, tool: str, command: str) -> None:
        super().__init__(f"{tool} is not installed. Install it with: {command}")
        self.tool = tool
        self.command = command


class DataError(LipbridgeError, ValueError):
    """A dataset that is missing, damaged or inconsistent."""


class StudyFileError(LipbridgeError, ValueError):
    """A study file with faults: each says its line, its field, what was found and what is allowed."""

    def __init__(self, file: str, faults: Iterable[str], more: int = 0) -> None:
        self.faults = tuple(faults)
        self.lines = [f"{file}, {fault}" for fault in self.faults]
        if more:
            self.lines.append(f"and {more} more")
        super().__init__("; ".join(self.lines))


class ModelFileError(LipbridgeError, ValueError):
    """A model file that is missing, damaged, hostile, or of an unknown architecture."""


class ProofRefused(LipbridgeError, ValueError):
    """A proof that does not show what it states, with the first step that is wrong."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The proof is refused: {why}.")


class NothingToDraw(LipbridgeError, ValueError):
    """Rows that do not hold what a figure shows."""

    def __init__(self, figure: str, needs: str) -> None:
        super().__init__(f"There is nothing to draw for {figure}: the rows hold no {needs}.")
        self.figure = figure


class FileNotWritten(LipbridgeError, OSError):
    """A file that could not be written: which, why, and the way out. What was there before is as it was."""

    def __init__(self, path: str | os.PathLike[str], cause: OSError) -> None:
        why = cause.strerror or str(cause) or type(cause).__name__
        OSError.__init__(self, cause.errno, why, os.fspath(path))

    def __str__(self) -> str:
        return f"Cannot write {self.filename!r}: {self.strerror}. {way_out(self)}, or write elsewhere."


class FolderInUse(LipbridgeError, RuntimeError):
    """A folder that another process writes into, with its name."""

    def __init__(self, folder: str, holder: str) -> None:
        super().__init__(f"{folder} is in use by {holder}. Wait until it ends, end it, or give another folder.")
        self.holder = holder


class TrainingError(LipbridgeError, RuntimeError):
    """A training run that could not go on; what was reached so far is kept."""


class ClusterError(LipbridgeError, RuntimeError):
    """A cluster that takes no jobs, or cannot be reached; what is finished is kept."""


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of any error's text, printable and not too long; its kind if it has no text."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(c if c.isprintable() else " " for c in lines[0])[:most]


def kind_and_line(error: BaseException, most: int = 200) -> str:
    """The kind of an error, and the first line of its text if it has any."""
    kind = type(error).__name__
    return f"{kind}: {first_line(error, most)}" if str(error).strip() else kind


def way_out(error: OSError) -> str:
    """What to do about a file that cannot be written."""
    return _WAYS_OUT.get(error.errno or 0, "See that its folder is there and can be written")


_WAYS_OUT = {
    errno.ENOSPC: "Make room on its disk",
    errno.EDQUOT: "Make room in your quota of its disk",
    errno.EFBIG: "Raise the limit of the size of files (ulimit -f)",
    errno.EROFS: "Mount its file system for writing",
    errno.EACCES: "Get the permission to write there",
    errno.ENOLCK: "Take a file system that keeps locks",
    errno.ENOSYS: "Take a file system that keeps locks",
    errno.EOPNOTSUPP: "Take a file system that keeps locks",
    errno.EPERM: "Get the permission to write there",
}


def _shown(value: object) -> str:
    """One line, and not a screenful, whatever was passed."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whole numbers of thousands of digits have no text either
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:197]}..."
