"""Faults of a study file: the line, the field, what stands there and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from pydantic import ValidationError

from lipbridge.checks import told
from lipbridge.disk.toml_lines import Path
from lipbridge.errors import InvalidArgument, LipbridgeError, StudyFileError, UnknownName, first_line

#: So many faults are told at once.
MOST = 10


class Faults:
    """The faults of one file so far; :meth:`done` raises them all."""

    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self.file, self.lines = file, lines
        self.found: dict[tuple[int, str], None] = {}

    def add(self, path: Path, text: str) -> None:
        """A fault of the field at ``path``; where that is not in the file, of the table that lacks it."""
        line, known = 1, path
        while known and known not in self.lines:
            known = known[:-1]
        line = self.lines.get(known, 1)
        place = spelt(path)
        self.found[line, f"line {line}, {place}: {text}" if place else f"line {line}: {text}"] = None

    def raised(self, path: Path, error: Exception, value: object = None) -> None:
        """A fault that a check told by raising."""
        if isinstance(error, UnknownName):
            self.add(path, unknown(error.name, error.known, error.kind.rstrip(":")))
        elif isinstance(error, InvalidArgument) and error.should:
            self.add(path, f"should {error.should}; found {shown(value)}")
        else:
            self.add(path, first_line(error, 400).rstrip("."))

    def checked(self, path: Path, value: object, check: Callable[[], object]) -> bool:
        """Whether a check passes; what it raises becomes a fault."""
        try:
            check()
        except LipbridgeError as error:
            self.raised(path, error, value)
            return False
        return True

    def done(self) -> None:
        """Go on if there is no fault.

        Raises:
            StudyFileError: with the first ten, in the order of the file.
        """
        if self.found:
            told_all = [text for _, text in sorted(self.found)]
            raise StudyFileError(self.file, told_all[:MOST], max(0, len(told_all) - MOST))


def from_pydantic(faults: Faults, error: ValidationError, fields: Callable[[Path], Iterable[str]]) -> None:
    """All that pydantic found, in our words; ``fields`` tells which keys the table at a path knows."""
    for fault in error.errors():
        path, kind, value = tuple(fault["loc"]), fault["type"], cast(object, fault["input"])
        context = fault.get("ctx", {})
        if kind == "extra_forbidden":
            faults.add(path, unknown(str(path[-1]), fields(path[:-1]), "key"))
        elif kind == "missing":
            faults.add(path, "is missing")
        elif kind == "value_error" and isinstance(context.get("error"), LipbridgeError):
            faults.raised(path, context["error"], value)
        elif kind == "value_error":
            faults.add(path, f"{context['error']}; found {shown(value)}")
        else:
            words = _WORDS.get(kind)
            text = fault["msg"] if words is None else f"should {words.format(**_listed(context))}"
            faults.add(path, f"{text}; found {shown(value)}")


_WORDS = {
    "string_type": "be text",
    "string_too_short": "not be empty",
    "int_type": "be a whole number",
    "int_from_float": "be a whole number",
    "bool_type": "be true or false",
    "float_type": "be a number",
    "finite_number": "be finite",
    "list_type": "be a list",
    "too_short": "hold at least {min_length} item(s)",
    "dict_type": "be a table",
    "model_type": "be a table",
    "model_attributes_type": "be a table",
    "greater_than": "be above {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be below {lt}",
    "literal_error": "be {expected}",
}


def _listed(context: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in context.items()}


def unknown(name: str, known: Iterable[str], kind: str = "name") -> str:
    """``unknown key `penaly`, did you mean `penalty`?``, or all that is known if nothing is near."""
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(name, names, 3)
    if near:
        return f"unknown {kind} {shown(name)}, did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"unknown {kind} {shown(name)}; known: {', '.join(names[:_NAMES]) or 'none'}{more}"


#: So many names are told of those that are known: a grid has thousands of networks.
_NAMES = 30


def spelt(path: Path) -> str:
    """``networks[0].grid.penalty``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def shown(value: object) -> str:
    """A value as a fault tells it, on one line and not too long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        text = " ".join(repr(cast(object, value)).split())
        return text if len(text) <= 80 else f"{text[:77]}..."
    return repr(told(value))


__all__ = ["MOST", "Faults", "from_pydantic", "shown", "spelt", "unknown"]
