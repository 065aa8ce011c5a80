"""The errors of lipbridge: each takes facts and writes the sentence that names the problem and the way out."""

from __future__ import annotations

from collections.abc import Iterable


class LipbridgeError(Exception):
    """Base of every error that lipbridge raises on purpose. Its text is one line, fit for a person."""


class InvalidArgument(LipbridgeError, ValueError):
    """A parameter has a value outside its domain."""

    def __init__(self, parameter: str, should: str, found: object) -> None:
        super().__init__(f"Parameter `{parameter}` should {should}. Found {_shown(found)}.")
        self.parameter = parameter


class Misfit(InvalidArgument):
    """Two arguments that do not fit together, e.g. a module and data: says what each of them is."""

    def __init__(self, parameter: str, fact: str, way_out: str) -> None:
        LipbridgeError.__init__(self, f"{fact}. {way_out}.")
        self.parameter = parameter


class UnknownName(LipbridgeError, ValueError):
    """A name that no registry knows, with the names that it does know."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"Unknown {kind} {_shown(name)}. Known: {', '.join(known)}.")
        self.name = name


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


class ModelFileError(LipbridgeError, ValueError):
    """A model file that is missing, damaged, hostile, or of an unknown architecture."""


class TrainingError(LipbridgeError, RuntimeError):
    """A training run that could not go on; what was reached so far is kept."""


def _shown(value: object) -> str:
    """One line, and not a screenful, whatever was passed."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # whole numbers of thousands of digits have no text either
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:197]}..."
